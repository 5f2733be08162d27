"""A step's rows arranged on the device against what the host makes of the same trees."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.unit.tree.random_trees import random_trees
from vllm_smart.tree import ancestor_masks

pytest.importorskip("triton")

POISON = 77


def on_device(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE, dtype)


@examples(40)
@given(
    num_reqs=st.integers(1, 5),
    max_nodes=st.integers(1, 40),
    dimensions=st.sampled_from([None, 3]),
    trims=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_arranged_as_the_host_would(num_reqs, max_nodes, dimensions, trims, seed):
    from vllm_smart.step import StepPlan
    from vllm_smart.step.device_tree_store import DeviceTreeStore

    rng = np.random.default_rng(seed)
    trees = random_trees(seed, num_reqs, max_nodes)
    slots, sizes = rng.permutation(num_reqs + 2)[:num_reqs], trees.num_nodes
    kept = DeviceTreeStore(num_reqs + 2, 400, max_nodes + 3, DEVICE)
    kept.row_mask.fill_(POISON)
    kept.tail_lens.fill_(POISON)
    kept.put_from_host(slots, trees, max_depth=max_nodes)
    if trims:  # the scheduler may take nodes away; requests with drafts still lead
        num_nodes = -np.sort(-rng.integers(1, trees.num_nodes + 1))
        num_nodes = np.minimum(num_nodes, trees.num_nodes)
        order = np.argsort(num_nodes == 1, kind="stable")
    else:
        num_nodes, order = trees.num_nodes, np.argsort(trees.num_nodes == 1, kind="stable")
    fields = ("token", "parent", "depth", "rank", "path_prob", "draft_prob", "source")
    trees = type(trees)(
        **{name: getattr(trees, name)[order] for name in fields}, num_nodes=num_nodes[order]
    )
    of_all = sizes[order]
    slots, num_nodes = slots[order], num_nodes[order].astype(np.int32)
    nodes_of = torch.from_numpy(slots).to(DEVICE)
    # Some rows of a prompt come before a root.
    num_rows = num_nodes + np.where(num_nodes == 1, rng.integers(0, 4, num_reqs), 0)
    query_start = np.concatenate(([0], np.cumsum(num_rows))).astype(np.int32)
    row_start = np.concatenate(([0], np.cumsum(num_nodes))).astype(np.int32)
    computed = rng.integers(0, 200, num_reqs)
    sequential = np.concatenate([c + np.arange(n) for c, n in zip(computed, num_rows, strict=True)])
    batch = SimpleNamespace(
        num_reqs=num_reqs,
        num_computed_tokens_np=computed,
        num_scheduled_tokens=num_rows,
        query_start_loc_np=query_start,
        idx_mapping=on_device(slots, torch.int64),
        cu_num_logits=on_device(row_start, torch.int32),
        query_start_loc=on_device(query_start, torch.int32),
        positions=on_device(sequential, torch.int64),
        logits_indices=torch.zeros(row_start[-1]),
    )
    plan = StepPlan(batch, trees, branching=True)
    positions = batch.positions.clone()
    if dimensions is not None:
        positions = torch.stack([positions + 1000 * each for each in range(dimensions)])
    expected = positions.cpu().numpy().copy()
    rows, shift = plan.shifted_rows
    expected[..., rows] += shift

    nodes = kept.arrange(batch, positions)
    assert positions.cpu().numpy().tolist() == expected.tolist()
    assert nodes.position.tolist() == plan.node_pos.tolist()
    assert nodes.depth.tolist() == trees.depth[plan.is_node].tolist()
    assert nodes.root_position.tolist() == plan.root_pos.tolist()
    has_drafts = num_nodes > 1
    assert kept.tail_lens[:num_reqs].tolist() == np.where(has_drafts, num_nodes, 0).tolist()
    assert not kept.tail_lens[num_reqs:].any()
    ours = kept.row_mask.cpu().numpy()
    masks = ancestor_masks(trees.parent).view(np.int32)
    words = min(ours.shape[1], masks.shape[2])
    for req in np.flatnonzero(has_drafts):
        of_req = ours[query_start[req] : query_start[req + 1]]
        assert (of_req[:, :words] == masks[req, : num_nodes[req], :words]).all()
        assert not of_req[:, words:].any()
    assert (ours[query_start[-1] :] == POISON).all()
    # What stands beyond a tree is inert: a child of the root at its position, with no token.
    beyond = np.arange(max_nodes + 3) >= of_all[:, None]
    for name, inert in (("parent", 0), ("token", -1)):
        assert (getattr(nodes, name).cpu().numpy()[beyond] == inert).all()
    assert not kept.kept.depth[nodes_of].cpu().numpy()[beyond].any()
    assert not kept.kept.value[nodes_of].cpu().numpy()[beyond].any()
    is_node = plan.is_node
    for name in ("parent", "token"):
        own = getattr(nodes, name).cpu().numpy()[:, : is_node.shape[1]]
        assert own[is_node].tolist() == getattr(trees, name)[is_node].tolist()
