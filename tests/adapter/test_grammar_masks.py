"""Masks of structured output, from vLLM's scheduler over ours to vLLM's worker.

A step that is scheduled ahead has room for more drafts than run. How masks lie in memory differs by
version; what comes out must not.
"""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.adapter.test_async_schedule import SLOTS, progress, schedule

pytestmark = pytest.mark.vllm
ROOM, VOCAB = 4, 96


class CountingGrammar:
    """Allows one token at a time: `first`, then `first + 1`, and so on."""

    def __init__(self, first: int) -> None:
        self.next = first

    def is_terminated(self) -> bool:
        return False

    def fill_bitmask(self, masks: torch.Tensor, row: int) -> None:
        masks[row] = 0
        masks[row].numpy().view(np.uint32)[self.next // 32] = np.uint32(1 << self.next % 32)

    def accept_tokens(self, request: str, tokens: list[int]) -> bool:
        self.next += len(tokens)
        return True

    def rollback(self, count: int) -> None:
        self.next -= count


def scheduler_masks(first: dict[str, int], drafts: dict[str, list[int]]) -> np.ndarray:
    """As vLLM makes them of requests with grammars, in the order of `first`."""
    from vllm.v1.structured_output import StructuredOutputManager

    manager = object.__new__(StructuredOutputManager)
    manager.__dict__.update(
        vllm_config=SimpleNamespace(
            num_speculative_tokens=ROOM,
            scheduler_config=SimpleNamespace(max_num_seqs=4),
            model_config=SimpleNamespace(is_diffusion=False),
        ),
        backend=SimpleNamespace(
            allocate_token_bitmask=lambda rows: torch.full((rows, VOCAB // 32), -1, dtype=torch.int32)
        ),
        enable_in_reasoning=True,
        fill_bitmask_parallel_threshold=99,
        _grammar_bitmask=None,
        _full_mask=torch.tensor(-1, dtype=torch.int32),
    )
    requests = {
        name: SimpleNamespace(structured_output_request=SimpleNamespace(grammar=CountingGrammar(token)))
        for name, token in first.items()
    }
    return manager.grammar_bitmask(requests, list(first), drafts)


def allowed(req_ids: list[str], num_drafts: list[int], grammar) -> list[list[int]]:
    """Tokens that each logits row of a batch may take, once vLLM's worker has applied the masks."""
    from vllm.v1.worker.gpu.structured_outputs import StructuredOutputsWorker

    takes = inspect.signature(StructuredOutputsWorker).parameters
    sizes = {"max_num_logits": 40, "vocab_size": VOCAB, "device": torch.device("cpu")}
    sizes |= {"mask_stride": ROOM + 1, "num_bonus_tokens": 1}
    worker = StructuredOutputsWorker(**{name: sizes[name] for name in takes})
    starts = np.concatenate(([0], np.cumsum(np.array(num_drafts) + 1))).astype(np.int32)
    batch = SimpleNamespace(
        req_ids=req_ids,
        num_draft_tokens_per_req=np.array(num_drafts, np.int32),
        cu_num_logits_np=starts,
        cu_num_logits=torch.from_numpy(starts),
    )
    logits = torch.zeros(int(starts[-1]), VOCAB)
    requests = grammar.structured_output_request_ids
    worker.apply_grammar_bitmask(logits, batch, requests, grammar.grammar_bitmask)
    return [torch.isfinite(row).nonzero().flatten().tolist() for row in logits]


@pytest.fixture(autouse=True)
def kernels():
    from vllm_smart.mrv2_cpu import provide_v2_kernels
    from vllm_smart.seams.host import is_cpu

    if not is_cpu():
        pytest.skip("the masks are applied by the kernels for CPUs")
    provide_v2_kernels()


@pytest.mark.parametrize("num_nodes", [[3, 2], [5, 5], [1, 1], [1, 5]])
def test_each_row_that_runs_has_the_mask_of_its_draft(num_nodes):
    from vllm.v1.core.sched.output import GrammarOutput

    from vllm_smart.adapter.async_schedule import exact
    from vllm_smart.seams.versions import masks_of

    made = schedule(ROOM, ["a", "b", "c"])
    first = {"c": 40, "a": 10}
    made.scheduled_spec_decode_tokens |= {
        name: list(range(token, token + ROOM)) for name, token in first.items()
    }
    run = exact(progress(num_nodes), made, SLOTS)
    masks = scheduler_masks(first, made.scheduled_spec_decode_tokens)
    grammar = masks_of(GrammarOutput(list(first), masks, [ROOM, ROOM]), made, run)
    drafts = [len(run.scheduled_spec_decode_tokens.get(name, ())) for name in ("a", "b", "c")]
    assert drafts == [num_nodes[0] - 1, 0, num_nodes[1] - 1]
    assert allowed(["a", "b", "c"], drafts, grammar) == [
        *([10 + place] for place in range(num_nodes[0])),
        list(range(VOCAB)),
        *([40 + place] for place in range(num_nodes[1])),
    ]
    assert grammar.num_acceptable_drafts == [drafts[2], drafts[0]]


def test_a_step_that_runs_as_it_was_scheduled_keeps_its_masks():
    """As where the device says how many of a request's rows run."""
    from vllm.v1.core.sched.output import GrammarOutput

    from vllm_smart.seams.versions import masks_of

    made = schedule(ROOM, ["a", "b"])
    masks = scheduler_masks({"b": 7}, made.scheduled_spec_decode_tokens)
    for acceptable in ([2], None):
        whole = masks_of(GrammarOutput(["b"], masks, acceptable), made, made)
        assert whole.grammar_bitmask.tolist() == masks.tolist()
        assert whole.num_acceptable_drafts == acceptable
