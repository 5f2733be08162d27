"""The choice in a few launches against the plain versions of all that it does."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.kernels.random_growth import on_device
from tests.kernels.test_grow_reference import grow_both
from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.choose import BY_RATE, BY_WORTH, FIRST_DROP
from vllm_smart.kernels.choose.device import RequestTerms, StepPromise
from vllm_smart.kernels.choose.gpu import choose_best, order_candidates
from vllm_smart.kernels.choose.reference import off_chain, select_all, select_nodes
from vllm_smart.kernels.count_best.gpu import count_best as count_best_in_one_launch
from vllm_smart.kernels.count_best.reference import count_best


@examples(40)
@given(
    num_rows=st.integers(1, 7),
    num_columns=st.integers(1, 40),
    total=st.integers(0, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_best_of_a_batch_are_counted_as_a_sort_would(num_rows, num_columns, total, seed):
    """Values in eighths, so that many are tied, and many are 0."""
    rng = np.random.default_rng(seed)
    values = on_device(rng.integers(0, 6, (num_rows, num_columns)).astype(np.float32) / 8)
    assert count_best_in_one_launch(values, total).tolist() == count_best(values, total).tolist()


@examples(50)
@given(
    num_reqs=st.integers(1, 6),
    depth=st.integers(1, 5),
    width=st.integers(1, 4),
    children=st.integers(1, 4),
    budget=st.integers(1, 40),
    step_ms=st.floats(0.0, 3.0),
    branching_ms=st.sampled_from([0.0, 0.5, 5.0]),
    least_nodes=st.integers(0, 3),
    goal=st.sampled_from([BY_RATE, FIRST_DROP, BY_WORTH]),
    price=st.sampled_from([0.0, 0.05, 0.4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_choice_is_that_of_the_plain_version(
    num_reqs, depth, width, children, budget, step_ms, branching_ms, least_nodes, goal, price, seed
):
    limits = GrowthLimits(node_budget=budget, depth=depth, width=width, children=children)
    _, candidates = grow_both(num_reqs, limits, seed)
    rng = np.random.default_rng(seed)
    terms = RequestTerms(
        weight=on_device(rng.choice(np.array([0.5, 1.0, 2.0], np.float32), num_reqs)),
        max_nodes=on_device(rng.integers(0, budget + 2, num_reqs)),
    )
    numbers = on_device(np.array([num_reqs, 1.5, branching_ms, least_nodes, goal, price]))
    # Stairs; larger steps than the last cost as much as that.
    sizes = np.arange(rng.integers(1, num_reqs * budget + 2))
    promise = StepPromise(*numbers, verify_ms=on_device(10.0 + step_ms * (sizes // 7)))

    branching_value = (off_chain(candidates) * terms.weight).amax()
    plain = select_nodes(candidates.path_prob, budget, promise, terms, branching_value)
    everything = select_all(candidates.path_prob, budget, terms.max_nodes)
    ordered = order_candidates(candidates, budget, terms)
    chosen = choose_best(ordered, promise)

    assert chosen.tolist() == plain.num_draft_nodes.tolist()
    assert chosen.dtype == torch.int32
    assert ordered.num_available.tolist() == everything.num_draft_nodes.tolist()
    assert float(ordered.off_chain.amax()) == float(branching_value)
    room = plain.path_prob.shape[1]
    is_candidate = plain.path_prob > 0
    assert ordered.path_prob[:, :room].tolist() == plain.path_prob.tolist()
    assert ordered.order[:, :room][is_candidate].tolist() == plain.order[is_candidate].tolist()
    place = torch.arange(budget, device=DEVICE)
    value = ordered.path_prob * terms.weight.unsqueeze(1)
    value = value.masked_fill(place >= terms.max_nodes.unsqueeze(1), 0.0)
    assert ordered.value.tolist() == value.tolist()
    assert not ordered.path_prob[:, room:].any()


@pytest.mark.parametrize("num_reqs", [1, 130])
def test_prefixes_longer_than_a_block_are_looked_at_too(num_reqs):
    """Costs do not rise, so that the best prefix holds all there is: 1040 nodes of 130 requests."""
    limits = GrowthLimits(node_budget=8, depth=2, width=2, children=4)
    _, candidates = grow_both(num_reqs, limits, seed=3)
    candidates.path_prob.fill_(0.25)
    terms = RequestTerms(torch.ones(num_reqs, device=DEVICE), torch.full((num_reqs,), 8, device=DEVICE))
    numbers = on_device(np.array([num_reqs, 1.0, 0.0, 0.0, BY_RATE, 0.0]))
    promise = StepPromise(*numbers, verify_ms=on_device(np.ones(1)))
    assert choose_best(order_candidates(candidates, 8, terms), promise).tolist() == [8] * num_reqs
