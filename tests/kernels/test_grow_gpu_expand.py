"""A draft level's rows in a few launches against the plain version."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.kernels.random_growth import copy_of, on_device, random_candidates, random_slots
from vllm_smart.kernels.grow.gpu import expand_level
from vllm_smart.kernels.grow.reference import take_rows

POISON = 77


@examples(50)
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

    expected = take_rows(plain, candidates, level, useful_depth > level + 1, weight, num_rows)
    inputs = torch.full((2, num_rows + 1), POISON, device=DEVICE)
    found = expand_level(candidates, ours, level, useful_depth, weight, num_rows, *inputs)
    assert (inputs[:, num_rows:] == POISON).all()
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
