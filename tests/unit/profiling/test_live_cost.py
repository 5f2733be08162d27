import numpy as np
import pytest

from vllm_smart.profiling import (
    NO_CONTEXT,
    Context,
    CorrectedCost,
    Correction,
    CostLearner,
    CostSamples,
    CostTable,
    StepShape,
)

TABLE = CostTable(
    CostSamples(
        verify=((1, 10.0), (8, 10.0), (9, 16.0), (256, 160.0)),
        draft=((1, 1.0), (256, 9.0)),
        context=((4, 1, 0, 10.0), (4, 1, 1000, 14.0)),
    )
)
RNG_SEED = 5


def step(rng: np.random.Generator) -> StepShape:
    """A step of some batch: plain, or with drafts."""
    num_requests = int(rng.integers(1, 9))
    drafts = bool(rng.random() < 0.8)
    nodes = int(rng.integers(0, 40)) if drafts else 0
    mean = float(rng.integers(0, 400))
    return StepShape(
        num_tokens=num_requests + nodes,
        context=Context(num_requests * mean, mean),
        num_requests=num_requests,
        branches=nodes > 3 and bool(rng.random() < 0.7),
        read_rows=2 * num_requests if drafts else 0,
        candidate_rows=num_requests if drafts else 0,
        level_rows=(num_requests,) * int(rng.integers(0, 5)) if drafts else (),
    )


def time_of(shape: StepShape, cost: CorrectedCost) -> float:
    drafts = shape.read_rows > 0
    ms = cost.verify_ms(shape.num_tokens, shape.context)
    ms += cost.overhead_ms(shape.num_requests, drafts)
    ms += cost.branching_ms(shape.num_requests) if shape.branches else 0.0
    if drafts:
        ms += cost.read_ms(shape.read_rows, shape.candidate_rows)
    return ms + sum(map(cost.draft_ms, shape.level_rows))


def teach(learner, truth, num_steps, noise=0.03, pauses=0.0, seed=RNG_SEED, make=step):
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        shape = make(rng)
        ms = time_of(shape, truth) * (1 + noise * rng.standard_normal())
        learner.observe(shape, ms * (20.0 if rng.random() < pauses else 1.0))


def errors(learner, truth) -> np.ndarray:
    rng = np.random.default_rng(77)
    shapes = [step(rng) for _ in range(200)]
    return np.array([abs(time_of(s, learner.cost) / time_of(s, truth) - 1) for s in shapes])


SLOWER = CorrectedCost(
    TABLE,
    Correction(
        verify=(1.4,) * 4, draft=2.0, context=1.4, step_ms=2.0, drafting_ms=3.0, branching_ms=1.5
    ),
)


def test_a_correction_scales_forwards_and_adds_what_no_forward_takes():
    cost = CorrectedCost(TABLE, Correction(verify=(2.0, 2.0, 2.0, 1.0), draft=3.0, context=2.0))
    assert cost.verify_ms(8) == pytest.approx(20.0)
    assert cost.verify_ms(1, Context(1000, 1000)) == pytest.approx(20.0 + 2.0)
    assert cost.verify_ms(np.array([1, 256])).tolist() == pytest.approx([20.0, 160.0], rel=0.01)
    assert cost.draft_ms(1) == pytest.approx(3.0)
    assert (np.diff(cost.verify_ms(np.arange(1, 300))) >= 0).all()  # although factors fall
    cost.correct(Correction(step_ms=1.0, request_ms=0.5, drafting_ms=2.0, branching_ms=-1.0))
    assert cost.verify_ms(8) == 10.0
    assert cost.overhead_ms(2, drafts=False) == 2.0
    assert cost.overhead_ms(2, drafts=True) == 4.0
    assert cost.branching_ms(2) == 0.0


def test_a_factor_goes_on_beyond_the_measured_sizes():
    cost = CorrectedCost(TABLE, Correction(verify=(1.5,) * 4))
    assert cost.verify_ms(1000) == pytest.approx(1.5 * TABLE.verify_ms(1000))


def test_before_any_step_the_table_is_believed_but_for_a_usual_overhead():
    cost = CostLearner(TABLE).cost
    assert cost.verify_ms(8) == 10.0
    assert 0 < cost.overhead_ms(1, drafts=False) < cost.overhead_ms(1, drafts=True) < 3.0


def test_a_slower_machine_and_its_overheads_are_learnt():
    learner = CostLearner(TABLE)
    before = np.median(errors(learner, SLOWER))
    teach(learner, SLOWER, 300)
    after = errors(learner, SLOWER)
    assert before > 0.2
    assert np.median(after) < 0.02
    assert after.max() < 0.15


def test_a_slower_machine_is_no_overhead_even_if_all_steps_are_alike():
    learner = CostLearner(TABLE)

    def plain(rng):
        return StepShape(8, NO_CONTEXT, 8, branches=False)

    teach(learner, SLOWER, 100, make=plain)
    # 18 ms instead of 11: most of it must scale with the forward, or trees would look too cheap.
    assert learner.cost.verify_ms(8) > 13.0
    assert learner.cost.verify_ms(64) / TABLE.verify_ms(64) > 1.2


def test_pauses_teach_nothing():
    learner = CostLearner(TABLE)
    teach(learner, SLOWER, 400, pauses=0.1)
    assert np.median(errors(learner, SLOWER)) < 0.03


def test_a_machine_that_changes_is_followed():
    learner = CostLearner(TABLE)
    teach(learner, CorrectedCost(TABLE), 500)
    assert np.median(errors(learner, CorrectedCost(TABLE))) < 0.03
    teach(learner, SLOWER, 1000)
    assert np.median(errors(learner, SLOWER)) < 0.04


def test_with_several_ranks_the_table_is_kept():
    learner = CostLearner(TABLE, learns=False)
    teach(learner, SLOWER, 50)
    shape = step(np.random.default_rng(1))
    assert learner.predict(shape) == pytest.approx(time_of(shape, CorrectedCost(TABLE)))
    assert learner.cost.correction == Correction()


def test_predictions_are_what_policies_are_told():
    learner = CostLearner(TABLE)
    teach(learner, SLOWER, 320)  # the 320th is in use
    rng = np.random.default_rng(2)
    for shape in (step(rng) for _ in range(50)):
        # But for what keeps curves from falling.
        assert learner.predict(shape) == pytest.approx(time_of(shape, learner.cost), rel=0.05)


def test_what_plain_steps_cost_is_remembered_while_others_are_run():
    """Whether drafting pays is told from both; slow trees must not make plain decoding look slow."""
    learner = CostLearner(TABLE)
    slow_trees = CorrectedCost(TABLE, Correction(verify=(1.4,) * 4, step_ms=1.0, drafting_ms=6.0))

    def plain(rng):
        return StepShape(8, NO_CONTEXT, 8, branches=False)

    def tree(rng):
        return StepShape(int(rng.integers(14, 24)), NO_CONTEXT, 8, True, read_rows=12, candidate_rows=8)

    for seed, num_trees in enumerate((16, 32, 64, 128, 256)):
        teach(learner, CorrectedCost(TABLE, Correction(step_ms=1.0)), 3, make=plain, seed=seed)
        teach(learner, slow_trees, num_trees, make=tree, seed=seed)
    shape = plain(None)
    assert learner.predict(shape) == pytest.approx(TABLE.verify_ms(8) + 1.0, rel=0.05)
    shape = tree(np.random.default_rng(1))
    assert learner.predict(shape) == pytest.approx(time_of(shape, slow_trees), rel=0.05)


def test_a_machine_that_is_slow_for_a_while_changes_no_shape():
    """Its speed comes and goes within seconds; sizes that were run then are not the dear ones."""
    rng = np.random.default_rng(RNG_SEED)
    shape_errors = []
    for _ in range(20):
        learner, speed = CostLearner(TABLE), 1.0
        for i in range(100):
            if i % 8 == 0:
                speed = float(rng.choice((1.0, 1.5)))
            shape = StepShape(int(rng.integers(8, 24)), NO_CONTEXT, 8, branches=False)
            learner.observe(shape, speed * (TABLE.verify_ms(shape.num_tokens) + 1.0))
        slope = learner.cost.verify_ms(24) / learner.cost.verify_ms(9)
        shape_errors.append(slope / (TABLE.verify_ms(24) / TABLE.verify_ms(9)) - 1.0)
    assert np.abs(shape_errors).mean() < 0.003


def test_what_is_predicted_of_a_step_follows_the_machine():
    rng = np.random.default_rng(RNG_SEED)
    learner, speed = CostLearner(TABLE), 1.0
    shape = StepShape(16, NO_CONTEXT, 8, branches=False)
    steady, followed = [], []
    for i in range(400):
        if i % 8 == 0:
            speed = float(rng.choice((1.0, 1.4)))
        ms = speed * (TABLE.verify_ms(16) + 1.0)
        steady.append(abs(learner.predict(shape) / ms - 1.0))
        followed.append(abs(learner.observe(shape, ms) / ms - 1.0))
    assert np.mean(steady) > 0.12
    assert np.mean(followed) < 0.07
