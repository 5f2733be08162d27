"""Why the drafter does not run."""

import numpy as np

from tests.unit.scheduler.random_costs import table
from vllm_smart.config import SmartConfig
from vllm_smart.scheduler import Controller, Rest, StepLoad

CONFIG = {"drafter": {"method": "eagle3", "model": "demo:eagle3"}}
EXPENSIVE = table({1: 10.0, 512: 5120.0}, {1: 30.0})
CHEAP = table({1: 10.0, 512: 10.0}, {1: 0.1})


def controller(costs, **settings) -> Controller:
    config = SmartConfig.model_validate({**CONFIG, **settings})
    made = Controller(config.resolve_node_budget(8), costs, max_num_reqs=4)
    return made


def learn_trees(made: Controller, prob: float, num_trees: int = 64) -> None:
    assert made._gate is not None
    probs = np.full((num_trees, 1), prob, np.float32)
    made._gate.learn(probs, np.ones((num_trees, 1), np.int32), np.zeros(0, np.int64))


def test_because_plain_decoding_is_faster():
    made = controller(EXPENSIVE)
    learn_trees(made, 0.1)
    made.who_drafts(StepLoad(1), 1, 0)
    assert made.why_at_rest(StepLoad(1)) is Rest.PLAIN_IS_FASTER
    runs, gain = made.gate_state
    assert not runs
    assert gain < 0


def test_because_what_plain_steps_cost_is_looked_at():
    made = controller(CHEAP)
    learn_trees(made, 0.2)
    reasons = []
    for _ in range(40):
        made.who_drafts(StepLoad(1), 1, 0)
        reasons.append(made.why_at_rest(StepLoad(1)))
    assert reasons.count(Rest.MEASURES_PLAIN) == 3
    assert made.gate_state[0]


def test_because_only_prompts_are_computed():
    assert controller(CHEAP).why_at_rest(StepLoad(0, 100)) is Rest.PROMPTS


def test_because_of_the_settings():
    made = controller(CHEAP, policy={"name": "off"})
    assert made.why_at_rest(StepLoad(1)) is Rest.SETTINGS
    assert made.gate_state == (False, 0.0)


def test_because_nobody_lets_it():
    assert controller(CHEAP).why_at_rest(StepLoad(1)) is Rest.NO_CANDIDATES
