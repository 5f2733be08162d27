import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from vllm_smart.errors import UnsupportedError
from vllm_smart.kernels.kv_compaction.gpu import KVCompaction

NUM_BLOCKS, BLOCK_SIZE, MAX_NODES = 9, 4, 13


def random_caches(num_layers: int, dtype: torch.dtype, slots_first: bool) -> list[torch.Tensor]:
    """Layers of one allocation, so that their blocks are strided; no two elements alike."""
    shape = (NUM_BLOCKS, num_layers, 3, BLOCK_SIZE, 2 * 12)
    elements = torch.arange(torch.Size(shape).numel(), dtype=torch.int32, device=DEVICE)
    if dtype != torch.float32:
        elements = elements.to(torch.int16)
    caches = elements.view(dtype).view(shape)
    if slots_first:  # in memory, as vLLM usually places them
        caches = caches.transpose(2, 3).contiguous().transpose(2, 3)
    return list(caches.unbind(1))


def bits(caches: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(caches).contiguous().view(torch.uint8)


def random_paths(num_reqs: int, seed: int) -> np.ndarray:
    """Ascending nodes, root first, -1 beyond: [num_reqs, MAX_NODES]; some move nothing."""
    rng = np.random.default_rng(seed)
    path = np.full((num_reqs, MAX_NODES), -1, np.int32)
    for req in range(num_reqs):
        length = rng.integers(0, MAX_NODES)
        nodes = np.sort(rng.choice(np.arange(1, MAX_NODES), length, replace=False))
        path[req, : length + 1] = [0, *nodes]
    return path


def expected_of(caches, path, root_pos, table):
    """All reads before all writes, slot by slot."""
    whole = [cache.clone() for cache in caches]
    for req, nodes in enumerate(path):
        for index, node in enumerate(nodes):
            if node >= 0:
                source, target = int(root_pos[req]) + int(node), int(root_pos[req]) + index
                from_block, to_block = (
                    table[req, source // BLOCK_SIZE],
                    table[req, target // BLOCK_SIZE],
                )
                for old, new in zip(caches, whole, strict=True):
                    new[to_block, :, target % BLOCK_SIZE] = old[from_block, :, source % BLOCK_SIZE]
    return whole


@pytest.mark.parametrize("slots_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@examples(10)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_paths_match_moves_that_read_first(dtype, slots_first, seed):
    rng = np.random.default_rng(seed)
    path, root_pos = random_paths(2, seed), rng.integers(0, BLOCK_SIZE, 2)
    table = rng.permutation(NUM_BLOCKS)[: 2 * 4].reshape(2, 4).astype(np.int32)
    caches = random_caches(3, dtype, slots_first)
    expected = expected_of(caches, path, root_pos, table)
    KVCompaction(caches).run(*(torch.from_numpy(a).to(DEVICE) for a in (path, root_pos, table)))
    assert torch.equal(bits(caches), bits(expected))


def test_a_path_in_place_moves_nothing():
    """Not even from blocks that do not exist."""
    caches = random_caches(2, torch.bfloat16, slots_first=True)
    before = bits(caches)
    path = torch.tensor([[0, 1, 2, 3, -1], [0, -1, -1, -1, -1]], dtype=torch.int32, device=DEVICE)
    table = torch.full((2, 4), 10**9, dtype=torch.int32, device=DEVICE)
    KVCompaction(caches).run(path, torch.tensor([3, 0], device=DEVICE), table)
    assert torch.equal(bits(caches), before)


@pytest.mark.parametrize(
    "caches",
    [
        [torch.zeros(2, 3, 16, 64), torch.zeros(2, 3, 16, 128)],
        [torch.zeros(2, 3, 16, 64, dtype=torch.float64)],
    ],
    ids=["different", "dtype"],
)
def test_caches_without_a_kernel_are_refused(caches):
    with pytest.raises(UnsupportedError, match="KV compaction"):
        KVCompaction(caches)
