"""What the host makes of trees that were grown on the device, a step later."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.unit.scheduler.random_costs import table
from vllm_smart.config import GrowthLimits, SmartConfig
from vllm_smart.kernels.choose.device import RequestTerms
from vllm_smart.kernels.grow import reference
from vllm_smart.proposer import LevelPlan
from vllm_smart.scheduler import Controller, Drafting, StepLoad

pytestmark = pytest.mark.vllm

BUDGET, START = 12, 30


def runtime_of(limits: GrowthLimits, num_reqs: int, level_ms: float) -> SimpleNamespace:
    """As much of a worker's runtime as growth asks for."""
    tree = {"node_budget": BUDGET, "depth": limits.depth}
    tree |= {"width": limits.width, "children": limits.children}
    content = {
        "drafter": {"method": "eagle", "model": "any"},
        "tree": tree,
        "policy": {"name": "smart"},
    }
    cost = table({1: 10.0, 512: 30.0}, {1: level_ms, 64: 1.5 * level_ms})
    config = SmartConfig.model_validate(content).resolve_node_budget(BUDGET)
    controller = Controller(config, cost, num_reqs)
    terms = SimpleNamespace(max_nodes_of=lambda slots: None)
    return SimpleNamespace(
        controller=controller,
        limits=limits,
        terms=terms,
        is_tracing=False,
        is_coupled=lambda slots: None,
    )


def growth_of(runtime: SimpleNamespace):
    """As much of growth on the device as reads a step's candidates."""
    from vllm_smart.adapter.drafter.device_growth import DeviceGrowth

    host = SimpleNamespace(max_model_len=1000)
    drafter = SimpleNamespace(host=host)
    reading = SimpleNamespace(drafter=drafter, host=host, readable_end=lambda result: result.end)
    return DeviceGrowth(reading, runtime, ends=None)


def grow(limits: GrowthLimits, grows: np.ndarray, level_rows: list[int], seed: int):
    """A state of growth with random candidates, of which the best are trees."""
    from vllm_smart.growth.sizes import GrowthSizes
    from vllm_smart.growth.state import GrowthState
    from vllm_smart.kernels.choose.gpu import order_candidates
    from vllm_smart.kernels.plant.gpu import plant_trees, report_candidates
    from vllm_smart.step.device_tree_store import DeviceTreeStore

    rng, num_reqs = np.random.default_rng(seed), len(grows)
    sizes = GrowthSizes(num_reqs + 1, (num_reqs + 1) * limits.width, limits.width)
    state = GrowthState(limits, sizes, BUDGET - 1, BUDGET + 1, 8, torch.float32, DEVICE)
    candidates, slots = state.candidates.of_first(num_reqs), state.slots.of_first(num_reqs)

    def add(frontier, row: torch.Tensor, num_rows: int) -> None:
        shape = (num_rows, limits.children)
        # In 64ths, so that many are tied.
        prob = np.sort(rng.integers(1, 16, shape), axis=1)[:, ::-1].astype(np.float32) / 64
        prob = torch.from_numpy(prob).to(DEVICE)[row]
        prob = torch.where((frontier.path_prob > 0).unsqueeze(2), prob, 0.0)
        token = rng.integers(0, 99, (num_rows, 1)) * limits.children + np.arange(limits.children)
        token = torch.from_numpy(token).to(DEVICE)[row]
        reference.add_level(candidates, state.level, frontier, token, prob, prob)

    every = torch.arange(num_reqs, device=DEVICE)
    roots = reference.begin_candidates(candidates, torch.from_numpy(grows).to(DEVICE))
    add(roots, every.unsqueeze(1), num_reqs)
    reference.begin_slots(slots, every + START, every * 0, torch.full_like(every, BUDGET - 1))
    for num_rows in level_rows:
        everybody = torch.ones(num_reqs, dtype=torch.bool, device=DEVICE)
        rows = reference.take_rows(
            slots, candidates, state.level, everybody, everybody.float(), num_rows
        )
        state.level.add_(1)
        add(rows.frontier, rows.row, num_rows)
    caps = torch.from_numpy(rng.integers(0, BUDGET + 1, num_reqs)).to(DEVICE)
    weight = torch.ones(num_reqs, device=DEVICE)
    ordered = order_candidates(candidates, BUDGET, RequestTerms(weight, caps))
    kept = DeviceTreeStore(num_reqs, 1, BUDGET + 1, DEVICE).kept
    trees = state.outbox.tree_ints, state.outbox.tree_floats
    plant_trees(candidates, ordered, ordered.num_available, weight, every, kept, *trees)
    report_candidates(candidates, state.outbox.candidate_ints, state.outbox.candidate_floats)
    return state


def grown_trees(runtime: SimpleNamespace, grows: np.ndarray, level_rows: list[int], seed: int):
    """Trees as `DeviceGrowth` leaves them, and what the step has brought."""
    from vllm_smart.growth.drafting_step import DraftingStep
    from vllm_smart.growth.grown import GrownTrees

    num_reqs = len(grows)
    batch = SimpleNamespace(num_scheduled_tokens=np.ones(num_reqs, np.int64))
    result = SimpleNamespace(
        slots=np.arange(num_reqs),
        start=np.full(num_reqs, START),
        end=np.full(num_reqs, START + 1),
        emits=grows,
    )
    step = DraftingStep(
        SimpleNamespace(input_batch=batch),
        result,
        np.arange(num_reqs),
        np.arange(num_reqs),
        Drafting.ALL,
        StepLoad(num_reqs),
    )
    grown = GrownTrees(
        step=step,
        policy=runtime.controller.policy,
        num_read=num_reqs,
        num_usual=num_reqs,
        most_slots=BUDGET - 1,
        max_width=runtime.limits.width,
        depth_left=np.full(num_reqs, 99),
        level_rows=level_rows,
        overhead_ms=0.0,
        read_ms=1.0,
        levels_ms=2.0,
    )
    state = grow(runtime.limits, grows, level_rows, seed)
    grown.copy_to_host(state, torch.arange(num_reqs, device=DEVICE))
    return grown, result


@examples(60)
@given(
    num_reqs=st.integers(1, 4),
    depth=st.integers(1, 4),
    width=st.integers(1, 4),
    children=st.integers(1, 4),
    num_levels=st.integers(0, 3),
    level_ms=st.sampled_from([0.01, 1.0, 100.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_candidates_are_those_that_the_trees_come_from(
    num_reqs, depth, width, children, num_levels, level_ms, seed
):
    rng = np.random.default_rng(seed)
    limits = GrowthLimits(BUDGET, depth, width, children)
    runtime = runtime_of(limits, num_reqs, level_ms)
    grows = rng.random(num_reqs) < 0.8
    level_rows = rng.integers(1, num_reqs * width + 1, min(num_levels, depth - 1)).tolist()
    grown, result = grown_trees(runtime, grows, level_rows, seed)
    growth = growth_of(runtime)
    log, plan = growth.log(grown, result), growth.level_plan

    log.trees.validate()
    again = log.candidates.select(log.trees.num_nodes - 1)
    is_node = again.is_node()
    assert again.num_nodes.tolist() == log.trees.num_nodes.tolist()
    for name in ("token", "parent", "depth", "rank", "path_prob", "draft_prob"):
        ours = getattr(log.trees, name)[:, : is_node.shape[1]]
        assert (ours[is_node] == getattr(again, name)[is_node]).all(), name
    assert (log.candidates.size > 1).tolist() == grows.tolist()
    if not grows.any():
        assert plan.policy is None
        return
    assert plan.policy is runtime.controller.policy
    # A level that costs nearly nothing is always worth it, one that costs a fortune never.
    if level_ms == 100.0:
        assert plan.rows_per_request == ()
    elif level_ms == 0.01 and depth > 1:
        assert plan.rows_per_request
    assert len(plan.rows_per_request) <= len(level_rows) + 1
    assert len(log.child_acceptance) >= len(plan.rows_per_request)


def test_levels_are_planned_for_the_requests_at_hand():
    limits = GrowthLimits(BUDGET, depth=5, width=4, children=2)
    policy, other = object(), object()
    plan = LevelPlan(policy, (2.0, 1.5, 0.25))
    rows = plan.level_rows(policy, limits, num_growing=4, max_width=4, most_slots=11)
    assert rows == [8, 6, 1]
    assert plan.level_rows(policy, limits, num_growing=4, max_width=1, most_slots=11) == [4, 4, 1]
    assert plan.level_rows(policy, limits, num_growing=4, max_width=4, most_slots=3) == [8, 4]
    assert plan.level_rows(policy, limits, num_growing=0, max_width=4, most_slots=11) == []
    # Another policy has not been asked yet: all levels, as far as there are slots.
    assert plan.level_rows(other, limits, num_growing=1, max_width=4, most_slots=11) == [4, 4, 3]
