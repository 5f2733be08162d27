"""A draft level in a few launches against the plain versions of all that it does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.device import DEVICE
from vllm_smart.kernels.torch_acceptance import DeviceAcceptance
from vllm_smart.kernels.torch_draft_rows import DeviceDraftSlots
from vllm_smart.kernels.torch_growth import DeviceCandidates, Frontier
from vllm_smart.kernels.triton_growth import add_children, expand_level

SMALLEST = 1e-4
POISON = 77
FLOAT32 = 1e-5  # of sums and logarithms in another order


def on_device(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


def copy_of(room):
    """The same tensors elsewhere."""
    tensors = {k: v.clone() for k, v in vars(room).items() if isinstance(v, torch.Tensor)}
    return replace(room, **tensors)


def random_candidates(rng, num_reqs: int, depth: int, width: int, children: int) -> DeviceCandidates:
    """In a larger batch's room; probabilities in eighths, so that many are tied, and many are 0."""
    room = DeviceCandidates.room(num_reqs + 2, depth, width, children, DEVICE)
    room.path_prob.copy_(on_device(rng.integers(0, 6, room.path_prob.shape) / np.float32(8)))
    room.token.copy_(on_device(rng.integers(0, 10**6, room.token.shape)))
    return room.of_first(num_reqs)


def random_slots(rng, num_reqs: int, max_slots: int, mask_rows: int) -> DeviceDraftSlots:
    """As a level before has left them."""
    room = DeviceDraftSlots.room(num_reqs + 2, mask_rows, max_slots, DEVICE)
    slots = room.of_first(num_reqs)
    slots.prefix_len.copy_(on_device(rng.integers(1, 100, num_reqs)))
    slots.window_start.copy_(slots.prefix_len // 2)
    slots.capacity.copy_(on_device(rng.integers(0, max_slots + 1, num_reqs)))
    slots.used.copy_(torch.minimum(slots.capacity, on_device(rng.integers(0, 3, num_reqs))))
    slots.row_start.copy_(on_device(np.cumsum([0, *rng.integers(0, 3, num_reqs)])))
    slots.mask.copy_(on_device(rng.integers(0, 2**31, slots.mask.shape, np.int32)))
    return slots


@settings(max_examples=50, deadline=None)
@given(
    num_reqs=st.integers(1, 6),
    depth=st.integers(2, 4),
    width=st.integers(1, 5),
    children=st.integers(1, 4),
    max_slots=st.integers(1, 70),
    num_rows=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_level_is_expanded_as_by_the_plain_version(
    num_reqs, depth, width, children, max_slots, num_rows, seed
):
    rng = np.random.default_rng(seed)
    candidates = random_candidates(rng, num_reqs, depth, width, children)
    plain = random_slots(rng, num_reqs, max_slots, max(30, num_reqs * 3))
    ours = copy_of(plain)
    number = int(rng.integers(0, depth - 1))
    level = torch.tensor([number], device=DEVICE)
    useful_depth = on_device(rng.integers(0, depth + 2, num_reqs))
    weight = on_device(rng.choice(np.array([0.5, 1.0, 2.0], np.float32), num_reqs))
    counts = torch.full((depth, num_reqs + 2), POISON, device=DEVICE)

    expected = plain.take(candidates, level, useful_depth > level + 1, weight, num_rows)
    found = expand_level(candidates, ours, level, useful_depth, weight, num_rows, counts)
    total = int(expected.row_start[-1])
    for name in ("row_start", "seq_lens", "tail_lens"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    for name in ("req", "token", "position", "slot_position", "source", "ancestor_mask"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one[:total].tolist() == other[:total].tolist(), name
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert not one[total:].any(), f"padding of {name}"
    is_node = expected.frontier.path_prob > 0
    assert found.frontier.path_prob.tolist() == expected.frontier.path_prob.tolist()
    for one, other in (
        (found.frontier.candidate, expected.frontier.candidate),
        (found.row, expected.row),
    ):
        assert one[is_node].tolist() == other[is_node].tolist()
        assert ((one >= 0) & (one < max(num_rows, depth * width * children))).all()
    assert ours.used.tolist() == plain.used.tolist()
    assert ours.row_start.tolist() == plain.row_start.tolist()
    assert ours.mask[:total].tolist() == plain.mask[:total].tolist()
    assert counts[number, :num_reqs].tolist() == expected.row_start.diff().tolist()
    others = np.arange(depth) != number
    assert (counts.cpu().numpy()[others] == POISON).all()
    assert (counts[:, num_reqs:] == POISON).all()


@pytest.mark.parametrize("children", [1, 3, 8])
@pytest.mark.parametrize("calibrates", [True, False])
@pytest.mark.parametrize("is_first", [True, False])
def test_children_are_added_as_by_the_plain_versions(children, calibrates, is_first):
    rng = np.random.default_rng(children)
    num_reqs, depth, width, num_rows = 4, 3, 3, 7
    candidates = random_candidates(rng, num_reqs, depth, width, children)
    nodes, number = (1, 0) if is_first else (width, 2)
    level = torch.tensor([number], device=DEVICE)
    path_prob = rng.random((num_reqs, nodes), np.float32) * (rng.random((num_reqs, nodes)) < 0.8)
    frontier = Frontier(
        on_device(rng.integers(0, 9, (num_reqs, nodes))), on_device(path_prob.astype(np.float32))
    )
    row = on_device(rng.integers(0, num_rows, (num_reqs, nodes)))
    token = on_device(rng.integers(0, 999, (num_rows, children)))
    prob = -np.sort(-rng.dirichlet(np.full(children + 2, 0.3), num_rows)[:, :children], axis=1)
    prob = prob.astype(np.float32)
    prob[0, 0], prob[1, -1], prob[2], prob[3, :1] = np.nan, 0.0, 0.0, 1.0
    prob = on_device(prob)
    choices = np.ones((num_reqs, children), np.float32)
    choices[1, 1:] = 0.0
    choices = on_device(choices)
    acceptance = DeviceAcceptance(
        on_device(rng.normal(1.0, 1.0, (depth, children)).astype(np.float32)),
        on_device(rng.uniform(0.0, 2.0, (depth, children)).astype(np.float32)),
        on_device(rng.normal(0.0, 0.3, num_reqs).astype(np.float32)),
        SMALLEST,
    )
    plain = copy_of(candidates)
    asked = torch.tensor(float(calibrates), dtype=torch.float64, device=DEVICE)
    add_children(candidates, level, frontier, row, token, prob, choices, acceptance, asked)

    # The plain versions go by rows, each of one request.
    every = torch.arange(num_reqs, device=DEVICE).unsqueeze(1).expand(-1, nodes).reshape(-1)
    of_nodes = torch.where(prob > 0, prob, 0.0)[row.reshape(-1)] * choices[every]
    accept = acceptance.of_level(level, every, of_nodes) if calibrates else of_nodes
    is_node = (frontier.path_prob > 0).unsqueeze(2)
    shape = (num_reqs, nodes, children)
    drafted, accept = (torch.where(is_node, each.view(shape), 0.0) for each in (of_nodes, accept))
    plain.add_level(level, frontier, token[row], drafted, accept)
    for name in ("token", "parent", "draft_prob"):
        assert getattr(candidates, name).tolist() == getattr(plain, name).tolist(), name
    torch.testing.assert_close(candidates.path_prob, plain.path_prob, rtol=FLOAT32, atol=FLOAT32)
