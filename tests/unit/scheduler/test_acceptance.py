import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_smart.config import MAX_CHILDREN, AcceptanceConfig
from vllm_smart.scheduler import AcceptanceModel

POPULATION = AcceptanceConfig(per_request=False)
FIRST = np.zeros(1, int)  # the slot of the only request
TYPICAL_ERROR = 0.03  # of a fit to a few thousand coin tosses, over buckets


def one_level(prob, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    prob = np.atleast_2d(np.asarray(prob, np.float32))
    return prob, np.full((1, 1), depth, np.int32), np.arange(prob.shape[1], dtype=np.int32)[None]


def nodes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    prob = rng.beta(0.7, 1.2, n).clip(1e-3, 1 - 1e-3).astype(np.float32)
    return prob, rng.integers(1, 9, n, dtype=np.int32), rng.integers(0, 8, n, dtype=np.int32)


def truth(prob: np.ndarray, depth: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """A drafter that is far too modest at the first depths."""
    logit = np.log(prob / (1 - prob))
    return 1 / (
        1 + np.exp(-(1.5 - 0.2 * np.minimum(depth, 6) - 0.2 * np.minimum(rank, 5) + 0.7 * logit))
    )


def taught(
    model: AcceptanceModel, num_steps: int, rule=truth, seed: int = 0, source_id: int = 0
) -> AcceptanceModel:
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        seen = nodes(rng, 30)
        source = np.full(30, source_id, np.int32)
        model.observe(*seen, source, rng.random(30) < rule(*seen), np.zeros(30, int))
    return model


def mean_error(model: AcceptanceModel, rule=truth) -> float:
    tried = nodes(np.random.default_rng(99), 3000)
    return float(np.abs(model.predict(*tried, FIRST) - rule(*tried)).mean())


def test_before_anything_is_seen_the_draft_is_believed():
    prob = np.array([0.01, 0.3, 0.99], np.float32)
    predicted = AcceptanceModel(POPULATION).predict(*one_level(prob, 1), FIRST)
    assert predicted[0] == pytest.approx(prob, rel=1e-4)


def test_calibration_learns_how_modest_the_draft_is():
    untaught = mean_error(AcceptanceModel(POPULATION))
    model = taught(AcceptanceModel(POPULATION), 300)
    assert untaught > 3 * TYPICAL_ERROR
    assert mean_error(model) < TYPICAL_ERROR


def test_a_few_hundred_nodes_already_help_because_depths_and_ranks_share_what_they_see():
    untaught = mean_error(AcceptanceModel(POPULATION))
    errors = [mean_error(taught(AcceptanceModel(POPULATION), 12, seed=s)) for s in range(5)]
    assert np.mean(errors) < 0.8 * untaught


def test_calibration_follows_a_drafter_that_changes():
    def reversed_modesty(prob, depth, rank):
        return prob**2

    model = taught(AcceptanceModel(AcceptanceConfig(window=100, per_request=False)), 300)
    before = mean_error(model, reversed_modesty)
    assert mean_error(taught(model, 300, reversed_modesty), reversed_modesty) < 0.3 * before


def test_without_calibration_nothing_is_learnt():
    model = taught(AcceptanceModel(AcceptanceConfig(calibrate=False)), 50)
    prob, depth, rank = nodes(np.random.default_rng(1), 100)
    assert model.predict(prob, depth, rank, FIRST).tolist() == prob.tolist()


@given(st.integers(0, 10**6), st.booleans())
def test_predictions_are_probabilities_and_grow_with_the_draft_whatever_was_seen(seed, all_accepted):
    model = taught(AcceptanceModel(POPULATION), 8, lambda *_: float(all_accepted), seed)
    prob = np.linspace(0, 1, 50, dtype=np.float32)
    for depth in (1, 3, 60):
        predicted = model.predict(prob, np.full(50, depth, np.int32), np.full(50, 2, np.int32), FIRST)
        assert predicted.dtype == np.float32
        assert ((predicted >= 0) & (predicted <= 1)).all()
        assert (np.diff(predicted) >= 0).all()


def test_sources_are_learnt_apart():
    model = taught(AcceptanceModel(POPULATION), 200, source_id=1)
    prob, depth, rank = nodes(np.random.default_rng(5), 500)
    untaught = AcceptanceModel(POPULATION).predict(prob, depth, rank, FIRST)
    assert model.predict(prob, depth, rank, FIRST, 0) == pytest.approx(untaught)
    of_ngrams = model.predict(prob, depth, rank, FIRST, 1)
    assert np.abs(of_ngrams - truth(prob, depth, rank)).mean() < 0.05
    assert (model.predict(prob, depth, rank, FIRST, 7) == untaught).all()  # shared by all others


def test_observing_no_nodes_is_allowed():
    model = AcceptanceModel(POPULATION)
    for _ in range(10):
        model.observe(
            np.zeros(0, np.float32), *np.zeros((3, 0), np.int32), np.zeros(0, bool), FIRST[:0]
        )


def one_class(parents: float, *children: float) -> tuple[np.ndarray, np.ndarray]:
    """Masses of a level whose nodes were all of confidence 3."""
    parent_mass, child_mass = np.zeros(5, np.float32), np.zeros((5, len(children)), np.float32)
    parent_mass[3], child_mass[3] = parents, children
    return parent_mass, child_mass


def test_an_undrafted_level_is_expected_to_be_like_the_levels_after_nodes_as_sure():
    model = AcceptanceModel(AcceptanceConfig(calibrate=False))
    for _ in range(100):
        model.saw_level(2, *one_class(10.0, 5.0, 2.5, 1.25))
    mean = model.mean_by_rank(2)
    assert mean.shape == (5, MAX_CHILDREN)
    assert mean[3, :3] == pytest.approx([0.5, 0.25, 0.125], rel=0.05)
    assert mean[2, 0] == pytest.approx(0.6)  # of which nothing was seen
    assert model.mean_by_rank(3)[3, :3] == pytest.approx(mean[3, :3])
    assert model.mean_by_rank(1)[3, 0] == pytest.approx(0.6)


def test_no_draft_probability_spoils_the_model():
    model = AcceptanceModel(POPULATION)
    prob, depth, rank = one_level([[np.nan, 0.0, 1.0]], 1)
    for _ in range(4):
        accepted, ones = np.array([True, False, True]), np.ones(3, np.int32)
        model.observe(prob[0], ones, rank[0], 0 * ones, accepted, FIRST.repeat(3))
    predicted = model.predict(prob, depth, rank, FIRST)
    assert ((predicted > 0) & (predicted < 1)).all()
    assert np.isfinite(model.mean_by_rank(1)).all()


def test_the_same_history_gives_the_same_bits():
    models = [taught(AcceptanceModel(POPULATION), 40) for _ in range(2)]
    tried = nodes(np.random.default_rng(5), 500)
    first, second = (model.predict(*tried, FIRST).tobytes() for model in models)
    assert first == second


def test_a_request_that_accepts_less_than_the_others_is_found_out():
    model = taught(AcceptanceModel(AcceptanceConfig(), max_num_reqs=3), 300)
    rng = np.random.default_rng(3)

    def stubborn(*seen):
        return truth(*seen) * 0.3

    before = [model.predict(*nodes(rng, 500), np.array([slot])).mean() for slot in (1, 2)]
    for _ in range(20):
        seen = nodes(rng, 10)
        model.observe(*seen, np.zeros(10, np.int32), rng.random(10) < stubborn(*seen), np.full(10, 1))
    tried = nodes(np.random.default_rng(7), 2000)
    errors = {
        slot: float((model.predict(*tried, np.array([slot])) - stubborn(*tried)).mean())
        for slot in (1, 2)
    }
    assert before[0] == pytest.approx(before[1], abs=0.05)
    assert errors[1] < 0.7 * errors[2]
    model.add_request(1)  # another request takes the slot
    assert (
        model.predict(*tried, np.array([1])).tolist() == model.predict(*tried, np.array([2])).tolist()
    )
    off = AcceptanceModel(AcceptanceConfig(per_request=False), max_num_reqs=2)
    off.observe(*seen, np.zeros(10, np.int32), np.zeros(10, bool), np.ones(10, int))
    assert off.predict(*tried, np.array([1])).tolist() == off.predict(*tried, np.array([0])).tolist()


def test_siblings_are_asked_one_after_the_other():
    model = taught(AcceptanceModel(AcceptanceConfig(), max_num_reqs=3), 40)
    prob = np.array([[0.5, 0.2, 0.1], [0.1, 0.1, 0.0], [0.6, 0.3, 0.1]], np.float32)
    slots = np.array([0, 2, 2])
    share = np.array([[0.5, 0.4, 1 / 3], [0.1, 1 / 9, 0.0], [0.6, 0.75, 1.0]], np.float32)
    for depth in (1, 3, 40):
        _, depths, rank = one_level(share, depth)
        each = model.predict(share, depths, rank, slots[:, None])
        expected = each * np.cumprod(np.column_stack((np.ones(3), 1 - each[:, :2])), axis=1)
        expected[1, 2] = 0.0  # ruled out
        expected = np.minimum.accumulate(expected, axis=1)
        assert model.predict_level(prob, depth, slots) == pytest.approx(expected, rel=1e-5)
    off = AcceptanceModel(AcceptanceConfig(calibrate=False))
    assert off.predict_level(prob, 1, slots) is prob


def test_before_anything_is_seen_siblings_mean_what_they_say():
    prob = np.array([[0.4, 0.3, 0.2], [0.9, 0.05, 0.0]], np.float32)
    predicted = AcceptanceModel(POPULATION).predict_level(prob, 2, FIRST.repeat(2))
    assert predicted == pytest.approx(prob, rel=1e-4)


@given(st.integers(0, 10**6), st.booleans())
def test_siblings_are_together_at_most_certain_and_in_order_whatever_was_seen(seed, all_accepted):
    rng = np.random.default_rng(seed)
    model = taught(AcceptanceModel(POPULATION), 8, lambda *_: float(all_accepted), seed)
    prob = -np.sort(-rng.dirichlet(np.full(6, 0.3), 5)[:, :4].astype(np.float32), axis=1)
    prob[0, 0], prob[1, 2] = np.nan, 0.0
    for depth in (1, 3, 60):
        predicted = model.predict_level(prob, depth, FIRST.repeat(5))
        assert (predicted >= 0).all()
        assert (predicted.sum(axis=1) <= 1 + 1e-6).all()
        assert (np.diff(predicted[2:], axis=1) <= 0).all()
        assert predicted[0, 0] == predicted[1, 2] == 0


def test_a_sure_first_choice_is_not_doubted_for_its_siblings_sake():
    """Asked on their own, all of them would add up to more than 1 where the first is likely."""
    rng = np.random.default_rng(4)
    model = AcceptanceModel(POPULATION)
    first = {True: 0.9, False: 0.3}  # acceptance of the first choice, where the draft says 0.5, 0.05
    for _ in range(1500):
        sure = bool(rng.random() < 0.5)
        share = np.array([0.5 if sure else 0.05, 0.2], np.float32)
        takes_first = rng.random() < first[sure]
        asked = 1 if takes_first else 2
        accepted = np.array([takes_first, not takes_first and rng.random() < 0.5])[:asked]
        ones, rank = np.ones(asked, np.int32), np.arange(asked, dtype=np.int32)
        model.observe(share[:asked], ones, rank, 0 * ones, accepted, np.zeros(asked, int))
    prob = np.array([[0.5, 0.1], [0.05, 0.19]], np.float32)  # the second's share is 0.2
    predicted = model.predict_level(prob, 1, FIRST.repeat(2))
    assert predicted[:, 0] == pytest.approx([0.9, 0.3], abs=TYPICAL_ERROR)
    assert predicted[0, 1] == pytest.approx(0.1 * 0.5, abs=TYPICAL_ERROR)


@pytest.mark.parametrize(("is_coupled", "is_masked"), [(True, False), (False, True), (True, True)])
def test_coupled_and_masked_requests_are_learnt_of_apart(is_coupled, is_masked):
    model = AcceptanceModel(POPULATION, max_num_reqs=2)
    model.add_request(1, is_coupled, is_masked)
    prob, depth, rank = nodes(np.random.default_rng(9), 200)
    slots, source = np.ones(200, np.int64), np.zeros(200, np.int32)
    for _ in range(40):
        model.observe(prob, depth, rank, source, np.ones(200, bool), slots)
    untaught = AcceptanceModel(POPULATION).predict(prob, depth, rank, FIRST)
    assert model.predict(prob, depth, rank, FIRST).tolist() == untaught.tolist()
    assert (model.predict(prob, depth, rank, FIRST + 1) > untaught + 0.01).mean() > 0.9
    level = np.array([[0.5, 0.3]] * 2, np.float32)
    greedy, coupled = model.predict_level(level, 1, np.array([0, 1]))
    assert coupled[0] > greedy[0] + 0.1
    scores = model.sibling_scores(np.array([0, 1]))
    at = scores.first + scores.row_of[0, 1, 0]
    assert scores.intercept[at[1]] > scores.intercept[at[0]] + 0.5
    anew = AcceptanceModel(AcceptanceConfig(window=100), max_num_reqs=2)
    anew.keep_requests(model)
    assert anew.sibling_scores(np.array([0, 1])).first.tolist() == scores.first.tolist()
