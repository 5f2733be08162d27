"""The backlog with vLLM's prefix cache and its rule for EAGLE.

The drafter's row at a block's last position takes the first token of the next block. So a request may
use the drafter's block only if it goes on with the same token. vLLM 0.32 sees to that by leaving the
last block that fits unused, 0.33 by hashing the token after a block with it: there it may be used.
"""

import inspect

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.vllm
BLOCK, NUM_BLOCKS = 16, 50


class PrefixCache:
    """vLLM's cache of one group of blocks that the target and an EAGLE head share."""

    def __init__(self) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=16, dtype=torch.float32)
        config = KVCacheConfig(NUM_BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)])
        # As `VllmConfig.num_hash_lookahead_tokens` is for EAGLE, from 0.33 on.
        takes = inspect.signature(KVCacheManager).parameters
        self.hashes_next_token = "num_hash_lookahead_tokens" in takes
        lookahead = {"num_hash_lookahead_tokens": 1} if self.hashes_next_token else {}
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK, sha256, *lookahead.values())
        self._manager = KVCacheManager(
            kv_cache_config=config,
            max_model_len=512,
            scheduler_block_size=BLOCK,
            hash_block_size=BLOCK,
            use_eagle=not self.hashes_next_token,
            **lookahead,
        )

    def serve(self, name: str, tokens: list[int]) -> tuple[int, list[int]]:
        """A request's prompt is computed: tokens that were found, and ids of all its blocks."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        request = Request(name, tokens, SamplingParams(), None, block_hasher=self._hasher)
        found, num_cached, *_ = self._manager.get_computed_blocks(request)
        self._manager.allocate_slots(request, len(tokens) - num_cached, num_cached, found)
        return num_cached, self._manager.get_block_ids(name)[0]


@pytest.fixture
def cache() -> PrefixCache:
    return PrefixCache()


@pytest.mark.parametrize("num_same", range(45, 67))
def test_what_is_found_goes_on_with_the_token_that_the_drafter_read(cache, num_same):
    first = list(range(100, 170))
    cache.serve("first", first)
    num_cached, _ = cache.serve("second", first[:num_same] + [7] * 20)
    assert num_cached < num_same  # one token more is the same
    num_full = (num_same - 1) // BLOCK
    if cache.hashes_next_token:
        assert num_cached == num_full * BLOCK
    else:
        assert num_cached == (num_same // BLOCK - 1) * BLOCK


def test_a_drafter_reads_on_behind_the_last_block_that_was_found(cache):
    from vllm_smart.proposer.backlog import Backlog
    from vllm_smart.proposer.block_marks import BlockMarks
    from vllm_smart.step import StepResult

    backlog = Backlog(max_num_reqs=4, block_size=BLOCK, num_blocks=NUM_BLOCKS)
    marks = BlockMarks(backlog, max_num_reqs=4, max_num_blocks=8)

    def step(slot: int, start: int, end: int, drafts: bool) -> list[int]:
        """The target computes positions; those that the drafter has read with the step."""
        slots, start, end = (np.array([value]) for value in (slot, start, end))
        result = StepResult(slots, start, end, np.ones(1, bool))
        rows = backlog.unread(slots, start, end) if drafts else None
        marks.touch(result.slots, np.zeros(1, np.int64), start if rows is None else rows.first, end)
        marks.mark(slots, end, marks.take())
        return [] if rows is None else rows.position.tolist()

    def join(slot: int, name: str, tokens: list[int]) -> int:
        num_cached, blocks = cache.serve(name, tokens)
        marks.add_request(slot, blocks)
        backlog.add_request(slot, num_cached, np.array(blocks[: num_cached // BLOCK], np.int64))
        return num_cached

    prompt = list(range(100, 165))  # four blocks and a token
    assert join(0, "read", prompt) == 0
    assert step(0, 0, 65, drafts=True) == list(range(65))
    found = join(1, "after it", prompt[:64] + [164, 1, 2])
    assert found == (64 if cache.hashes_next_token else 48)
    assert backlog.window_start[1] == 0
    assert step(1, found, 67, drafts=True) == list(range(found, 67))

    other = list(range(300, 365))
    assert join(2, "not read", other) == 0
    assert step(2, 0, 65, drafts=False) == []
    found = join(3, "after that", [*other, 1, 2])
    assert found == (64 if cache.hashes_next_token else 48)
    assert backlog.window_start[3] == found  # nothing of it may be seen
