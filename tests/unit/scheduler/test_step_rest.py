"""Single steps do without the drafter where it adds too little to what n-grams promise."""

import pytest

from tests.unit.scheduler.random_costs import table
from vllm_smart.config import GrowthLimits
from vllm_smart.scheduler import Choice, StepLoad
from vllm_smart.scheduler.marginal import MarginalPolicy
from vllm_smart.scheduler.step_rest import StepRest

ONE, EIGHT = StepLoad(1), StepLoad(8)


def choice(tokens: float, ms: float) -> Choice:
    return Choice(num_nodes=4, expected_tokens=tokens, predicted_ms=ms, rate=tokens / ms)


FEW, MANY = choice(1.3, 50.0), choice(5.0, 60.0)  # what n-grams promise


def taught(without: Choice, gained: float, ms: float, num: int = 8, load: StepLoad = ONE) -> StepRest:
    rest = StepRest(MarginalPolicy(GrowthLimits(4, 3, 4, 4), table({1: 10.0})))  # by rate
    for _ in range(num):
        rest.learn(without, choice(without.expected_tokens + gained, without.predicted_ms + ms), load)
    return rest


def test_the_drafter_rests_where_its_tokens_are_not_worth_its_time():
    rest = taught(MANY, gained=0.2, ms=15.0)
    assert rest.suffices(MANY, ONE)
    assert not taught(MANY, gained=2.0, ms=15.0).suffices(MANY, ONE)


@pytest.mark.parametrize(("without", "load"), [(FEW, ONE), (choice(40.0, 100.0), EIGHT)])
def test_steps_of_another_kind_are_judged_by_their_own(without, load):
    """By what n-grams promise a request, and by how many requests there are."""
    rest = taught(MANY, gained=0.0, ms=15.0)
    assert not rest.suffices(without, load)


def test_nothing_is_concluded_from_a_few_steps():
    assert not taught(MANY, gained=0.0, ms=15.0, num=7).suffices(MANY, ONE)


def test_now_and_then_the_drafter_runs_so_that_what_is_known_stays_true():
    rest = taught(MANY, gained=0.0, ms=15.0)
    rests = [rest.suffices(MANY, ONE) for _ in range(17)]
    assert rests == [True] * 16 + [False]
    for _ in range(40):
        rest.learn(MANY, choice(8.0, 75.0), ONE)
    assert not rest.suffices(MANY, ONE)


def test_who_waits_counts_in_the_rate():
    """With many who wait, a long step is worse than a short one that brings less."""
    waiting = StepLoad(1, num_waiting=20)
    few = Choice(num_nodes=1, expected_tokens=1.3, predicted_ms=50.0, rate=21.3 / 50.0)
    for load, without, is_enough in ((ONE, FEW, False), (waiting, few, True)):
        rest = taught(without, gained=0.6, ms=15.0, load=load)
        assert rest.suffices(without, load) == is_enough
