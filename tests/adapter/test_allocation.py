"""Rows of drafts in steps that are scheduled ahead: the host says how many, the device whose."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vllm
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.unit.tree.random_trees import random_trees
from vllm_smart.kernels.share_rows.gpu import share_out

pytest.importorskip("triton")
pytestmark = pytest.mark.vllm

MAX_REQS, MAX_NODES = 8, 12


def kept_trees(num_reqs: int, seed: int):
    """Trees by slot, some smaller than others; values in eighths, so that many are tied."""
    from vllm_smart.step.device_tree_store import DeviceTreeStore

    rng = np.random.default_rng(seed)
    kept = DeviceTreeStore(MAX_REQS, 200, MAX_NODES, DEVICE)
    trees = random_trees(seed, num_reqs, MAX_NODES)
    value = -np.sort(-rng.integers(1, 8, trees.path_prob.shape), axis=1).astype(np.float32) / 8
    trees.path_prob[:] = np.where(trees.is_node(), value, 0)
    slots = rng.permutation(MAX_REQS)[:num_reqs]
    kept.put_from_host(slots, trees, MAX_NODES)
    return kept, trees, slots


@examples(60)
@given(num_reqs=st.integers(1, 6), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_the_best_nodes_of_the_batch_are_verified(num_reqs, share, seed):
    kept, trees, slots = kept_trees(num_reqs, seed)
    room = np.random.default_rng(seed).integers(1, MAX_NODES, num_reqs)
    total = max(1, int(share * room.sum()))
    on_device = (torch.from_numpy(a).to(DEVICE) for a in (slots, room.astype(np.int32)))
    counts = share_out(kept.kept.value, *on_device, total).cpu().numpy()
    assert counts.sum() == total
    assert (counts <= room).all()
    value = trees.path_prob[:, 1:]
    place = np.arange(MAX_NODES - 1)
    has_room = place < room[:, None]
    taken = place < counts[:, None]
    left = value[has_room & ~taken]
    # Nothing that is left is better than anything taken, and rows are padded only at last.
    assert left.max(initial=0) <= value[taken].min()
    if not value[taken].all():
        assert not left.any()


@pytest.mark.parametrize("chosen", [3, 1, 0.5, 99])
def test_the_runner_gets_rows_that_fit_together(chosen):
    from vllm_smart.adapter.cuda.allocation import DraftAllocation

    kept, _, slots = kept_trees(3, seed=5)
    progress = SimpleNamespace(num_drafts=lambda room: min(round(chosen * len(room)), sum(room)))
    buffer = torch.full((MAX_REQS + 1,), -7, dtype=torch.int32, device=DEVICE)
    runner = SimpleNamespace(input_buffers=SimpleNamespace(query_start_loc=buffer))
    allocation = DraftAllocation(runner, kept, progress)
    # Two requests with drafts, one with a chunk of its prompt.
    room, num_tokens = np.array([6, 4, 0], np.int32), np.array([7, 5, 9], np.int32)
    rows = allocation.get_num_tokens({"a": 7, "b": 5, "c": 9}, {"a": [-1] * 6, "b": [-1] * 4})
    total = progress.num_drafts([6, 4])
    assert rows == 11 + total
    host_rows, bound = allocation.compact_batch(room, num_tokens, np.array([0, 7, 12, 13]))
    assert host_rows.sum() == rows
    assert host_rows[2] == 9
    assert bound.tolist() == [0, 7, 12, 13]
    logits, query, drafts, *more = allocation.reallocate_drafts(
        ["a", "b", "c"], torch.from_numpy(slots).to(DEVICE)
    )
    (counts,) = allocation.counts.wait()
    assert drafts == total == counts.sum()
    assert counts[2] == 0
    assert (counts <= room).all()
    assert logits.tolist() == [0, *np.cumsum(counts + 1)]
    assert query is buffer
    # vLLM 0.33 takes a fourth, which only batch-sharded sampling has.
    assert more == [None] * (vllm.__version_tuple__[:2] >= (0, 33))
    assert query.tolist() == [0, *np.cumsum(counts + [1, 1, 9]), *[rows] * 5]


def test_a_plan_made_ahead_becomes_the_plan_of_what_was_run():
    from vllm_smart.step import StepPlan, TreeStore

    store, trees = TreeStore(4, MAX_NODES), random_trees(1, 2, MAX_NODES)
    store.put(np.array([2, 0]), trees)
    slots, counts = np.array([2, 0, 1]), np.array([3, 1, 0])

    def batch(computed, room, query_start, cu_num_logits):
        return SimpleNamespace(
            num_reqs=3,
            idx_mapping_np=slots,
            num_computed_tokens_np=np.array(computed, np.int32),
            num_draft_tokens_per_req=np.array(room, np.int32),
            num_scheduled_tokens=np.array([1, 1, 5], np.int32) + np.array(room, np.int32),
            query_start_loc_np=np.array(query_start, np.int32),
            cu_num_logits_np=np.array(cu_num_logits, np.int32),
        )

    plan = StepPlan.ahead(
        batch([50, 60, 70], [6, 6, 0], [0, 3, 6, 11, 11], [0, 7, 14, 15]), store, True
    )
    assert plan.has_drafts
    assert plan.tree_sizes().num_rows == 6
    assert plan.tree_sizes().max_seq_len == 67
    plan.complete(np.array([40, 55, 70]), counts, store)
    exact = batch([40, 55, 70], counts, [0, 4, 6, 11, 11], [0, 4, 6, 7])
    for name, value in vars(exact).items():
        assert np.array_equal(getattr(plan.input_batch, name), value), name
    waited = StepPlan.make(exact, store)
    assert plan.trees.num_nodes.tolist() == waited.trees.num_nodes.tolist()
    assert plan.node_pos.tolist() == waited.node_pos.tolist()
    assert plan.branching == waited.branching
    assert plan.root_row.tolist() == waited.root_row.tolist()
