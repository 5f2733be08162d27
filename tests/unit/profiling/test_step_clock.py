import pytest

from vllm_smart.profiling import NO_CONTEXT, CostLearner, CostSamples, CostTable, StepClock, StepShape

SHAPE = StepShape(1, NO_CONTEXT, 1, branches=False)


@pytest.fixture
def learner():
    return CostLearner(CostTable(CostSamples(verify=((1, 10.0),), draft=((1, 2.0),))))


def begins(clock, now_s, has_prefill=False, after_pause=False):
    return clock.begins(now_s, SHAPE, has_prefill, after_pause)


def test_a_step_lasts_until_the_next_begins(learner):
    clock = StepClock(learner)
    assert begins(clock, 1.0) is None
    clock.rested()
    predicted, measured = begins(clock, 1.015)[:2]
    assert measured == pytest.approx(15.0)
    assert predicted == pytest.approx(11.0, abs=0.1)  # the forward, and a usual overhead


def test_what_the_drafter_ran_is_part_of_the_step(learner):
    clock = StepClock(learner)
    begins(clock, 0.0)
    clock.drafted(read_rows=1, candidate_rows=1, level_rows=[1, 1])
    predicted = begins(clock, 0.02).predicted_ms
    assert predicted == pytest.approx(10 + 3 * 2 + 2, abs=0.1)


def test_steps_teach_what_they_took(learner):
    clock = StepClock(learner)
    for index in range(100):
        predicted = begins(clock, 0.020 * index)
        clock.rested()
    assert predicted[0] == pytest.approx(20.0, rel=0.02)


def test_of_many_plain_steps_alike_some_teach_until_one_drafts(learner):
    clock = StepClock(learner)
    predictions = []
    for index in range(400):
        timing = begins(clock, 0.020 * index)
        predictions.append(timing is not None and timing[0] is not None)
        if index == 301:
            clock.drafted(read_rows=1, candidate_rows=1, level_rows=[])
        else:
            clock.rested()
    assert all(predictions[1:128])
    assert sum(predictions[200:300]) == 25
    assert all(predictions[302:400])


def test_prefills_teach_nothing_and_pauses_are_not_even_timed(learner):
    clock = StepClock(learner)
    for index in range(50):
        timing = begins(clock, 0.1 * index, has_prefill=True)
        clock.rested()
    assert timing == (None, pytest.approx(100.0), SHAPE, True)
    assert begins(clock, 99.0, after_pause=True) is None
    assert learner.cost.verify_ms(1) == 10.0


def test_a_step_that_was_not_finished_has_no_time(learner):
    clock = StepClock(learner)
    begins(clock, 0.0)
    assert begins(clock, 1.0) is None


def test_without_costs_steps_are_still_timed():
    clock = StepClock(None)
    begins(clock, 0.0)
    clock.rested()
    assert begins(clock, 0.5) == (None, 500.0, SHAPE, False)
