import numpy as np
import pytest

from tests.unit.scheduler.random_costs import table
from vllm_smart.config import SmartConfig
from vllm_smart.errors import CostTableError
from vllm_smart.profiling import Correction, CostSamples, CostTable
from vllm_smart.proposer import CandidatePool, Frontier
from vllm_smart.scheduler import Choice, Controller, Drafting, StepLoad

COST = table({1: 10.0, 512: 110.0}, {1: 1.0})
NODE = (np.full(1, 0.5, np.float32), np.ones(1, np.int32), *np.zeros((2, 1), np.int32))
SLOT = np.zeros(1, int)
LEVEL = (np.full((1, 1), 0.5, np.float32), 1)


def config(policy: dict, **sections) -> SmartConfig:
    content = {"drafter": {"method": "eagle", "model": "any"}, "policy": policy, **sections}
    return SmartConfig.model_validate(content).resolve_node_budget(8)


def accepts(controller: Controller, num_times: int = 200) -> None:
    for _ in range(num_times):
        controller.acceptance.observe(*NODE, np.ones(1, bool), SLOT)


def test_it_accepts_what_it_has_learnt_unless_the_policy_takes_drafts_as_they_are():
    controller = Controller(config({"name": "smart"}), COST, max_num_reqs=2)
    accepts(controller)
    assert controller.accept(*LEVEL, SLOT).item() > 0.9
    controller.reconfigure(config({"name": "chain"}))
    assert controller.accept(*LEVEL, SLOT).item() == 0.5


def test_what_was_learnt_outlives_other_policies_but_not_other_settings_of_learning():
    controller = Controller(config({"name": "smart"}), COST, max_num_reqs=2)
    accepts(controller)
    controller.reconfigure(config({"name": "smart", "min_gain": 0.1}))
    assert controller.accept(*LEVEL, SLOT).item() > 0.9
    controller.reconfigure(config({"name": "smart"}, acceptance={"window": 50}))
    assert controller.accept(*LEVEL, SLOT).item() == pytest.approx(0.5, abs=1e-3)


def test_a_policy_that_cannot_be_had_changes_nothing():
    controller = Controller(config({"name": "chain"}), None, max_num_reqs=2)
    policy = controller.policy
    with pytest.raises(CostTableError):
        controller.reconfigure(config({"name": "smart"}))
    assert controller.policy is policy
    assert controller.config.policy.name == "chain"


def test_off_never_drafts_and_fixed_policies_always_do():
    load = StepLoad(1)
    off = Controller(config({"name": "off"}), None, max_num_reqs=2)
    chain = Controller(config({"name": "chain"}), None, max_num_reqs=2)
    smart = Controller(config({"name": "smart"}), COST, max_num_reqs=2)
    stubborn = Controller(config({"name": "smart", "may_turn_off": False}), COST, max_num_reqs=2)
    answers = [controller.who_drafts(load, 1, 0) for controller in (off, chain, smart, stubborn)]
    assert answers == [Drafting.NONE, Drafting.ALL, Drafting.EXPLORE, Drafting.ALL]


def test_costs_are_zero_where_none_are_known_and_corrected_where_they_are():
    blind = Controller(config({"name": "chain"}), None, max_num_reqs=2)
    assert blind.correction is None
    assert blind.plain_ms(StepLoad(4)) == blind.read_ms(4, 1) == blind.overhead_ms(4, True) == 0.0
    learning = Controller(config({"name": "smart"}), COST, max_num_reqs=2)
    assert learning.plain_ms(StepLoad(1)) > COST.verify_ms(1)
    raw = Controller(config({"name": "smart"}, cost_table={"correct": False}), COST, max_num_reqs=2)
    assert raw.correction == Correction()
    assert raw.plain_ms(StepLoad(1)) == COST.verify_ms(1)


def test_what_a_step_without_the_drafter_takes_beyond_a_plain_one_is_its_rows_alone():
    smart = Controller(config({"name": "smart"}), COST, max_num_reqs=4, learns_costs=False)
    load = StepLoad(4)
    plain_ms = COST.verify_ms(4)
    choice = Choice(6, 7.0, predicted_ms=COST.verify_ms(10), rate=7.0 / COST.verify_ms(10))
    rows_ms = COST.verify_ms(10) - plain_ms
    assert smart.beyond_plain(load, choice) == pytest.approx((rows_ms, plain_ms / 4))
    assert smart.beyond_plain(StepLoad(0), choice) is None
    chain = Controller(config({"name": "chain"}), COST, max_num_reqs=4)
    assert chain.beyond_plain(load, choice) is None


def test_weights_are_for_policies_that_weigh():
    slots = np.array([0, 1])
    for policy, expected in (({"name": "smart"}, [1.5, 0.5]), ({"name": "chain"}, None)):
        controller = Controller(config(policy), COST, max_num_reqs=2)
        controller.add_request(0, weight=3.0)
        controller.add_request(1)
        value = controller.value_of(slots)
        assert (value if value is None else value.tolist()) == expected


def test_levels_that_a_drafter_has_run_beside_the_target_are_free():
    """Each drafted for itself costs more than it brings; those that are there already cost nothing."""
    dear = CostTable(CostSamples(verify=((1, 5.0), (64, 6.0)), draft=((1, 50.0), (64, 50.0))))
    beside = CostTable(dear.samples.model_copy(update={"beside": True}))
    gains = {}
    for costs, is_beside in ((dear, False), (beside, True)):
        controller = Controller(config({"name": "smart"}), costs, max_num_reqs=2)
        for _ in range(80):  # until the gate has seen enough to decide
            pool = CandidatePool(1, controller.limits, lambda prob, depth, req: prob)
            for level in range(3):
                frontier = pool.frontier(1) if level else Frontier.of_roots(np.zeros(1, np.int64), 1)
                prob = np.array([[0.8, 0.1]], np.float32)
                pool.add_children(frontier.req, frontier.node, np.array([[7, 9]]), prob)
            rows = [] if is_beside else [1, 1]
            controller.drafted(pool.candidates, np.zeros(1, np.int64), rows, is_beside=is_beside)
            controller.who_drafts(StepLoad(1), num_unread=0, num_prompt_rows=0)
        gains[is_beside] = controller.gate_state
    assert not gains[False][0]
    assert gains[True][0]
    assert gains[True][1] > 1.5  # of the first level alone it would be 0.8
