"""What a simulated drafter says, by where it comes from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trace.fake_engine import FakeEngine, settings
from vllm_smart.config import MAX_CHILDREN, AcceptanceConfig
from vllm_smart.errors import ConfigError, TraceError
from vllm_smart.kernels.grow import NUM_CONFIDENCES
from vllm_smart.scheduler import AcceptanceModel
from vllm_smart.scheduler.acceptance_state import save_acceptance
from vllm_smart.simulate.drafter import Expansions, chance_of
from vllm_smart.simulate.known_pairs import of_number, of_state, of_trace


def taken_first(of: Expansions, depth: int = 1) -> float:
    chance = (np.arange(4000) + 0.5) / 4000
    drawn = of.draw(depth, np.full(4000, NUM_CONFIDENCES - 1), chance)
    return float((of.taken[drawn] == 0).mean())


@pytest.mark.parametrize("first", [0.4, 0.7, 0.9])
def test_a_number_is_how_often_the_first_choice_is_taken(first):
    assert taken_first(of_number(first, seed=0)) == pytest.approx(first, abs=0.06)


def test_a_made_up_drafter_means_what_it_says():
    of = of_number(0.6, seed=0)
    sure = of.draft_prob[:, 0] > 0.8
    assert (of.taken[sure] == 0).mean() == pytest.approx(of.draft_prob[sure, 0].mean(), abs=0.02)
    assert (np.diff(of.draft_prob, axis=1) <= 0).all()
    assert (of.draft_prob.sum(axis=1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("first", [0.0, 1.0, -3.0, float("nan")])
def test_a_number_that_is_no_probability_is_an_error(first):
    with pytest.raises(ConfigError, match="--acceptance"):
        of_number(first, seed=0)


def test_a_state_gives_what_was_learnt_by_depth(tmp_path):
    model, path = AcceptanceModel(AcceptanceConfig()), tmp_path / "state.json"
    parent = np.zeros(NUM_CONFIDENCES, np.float32)
    parent[-1] = 1.0
    for depth, first in ((1, 0.85), (2, 0.35)):
        child = np.zeros((NUM_CONFIDENCES, 2), np.float32)
        child[-1] = first, 0.1
        for _ in range(600):
            model.saw_level(depth, parent, child)
    save_acceptance(model, "target", "drafter", path)
    of = of_state(path, seed=0)
    assert taken_first(of, depth=1) == pytest.approx(0.85, abs=0.06)
    assert taken_first(of, depth=2) == pytest.approx(0.35, abs=0.08)


def test_a_trace_gives_what_was_recorded_and_taken(tmp_path):
    config, path = settings("smart"), tmp_path / "steps.jsonl"
    FakeEngine(0, config).record(path, config, num_steps=60)
    of = of_trace(path)
    assert len(of.taken) > 100
    assert of.taken.min() >= -1
    assert of.taken.max() < 3
    hits = of.taken >= 0
    assert (of.draft_prob[hits, of.taken[hits]] > 0).all(), "what is taken was named"
    assert of.draft_prob.shape[1] == MAX_CHILDREN


def test_files_of_something_else_are_errors_that_say_what_to_give(tmp_path):
    state = tmp_path / "state.json"
    state.write_text("{}")
    with pytest.raises(ConfigError, match=r"acceptance\.state"):
        of_state(state, seed=0)
    with pytest.raises(ConfigError, match=r"acceptance\.state"):
        of_state(tmp_path / "missing.json", seed=0)
    with pytest.raises(TraceError):
        of_trace(tmp_path / "missing.jsonl")


@given(st.integers(0, 2**31), st.integers(0, 2**40), st.integers(0, 10**6))
def test_chances_depend_on_their_keys_alone(seed, request_number, position):
    one = chance_of(seed, np.array([request_number]), np.array([position]))
    among = chance_of(seed, np.array([7, request_number]), np.array([0, position]))
    assert one[0] == among[1]
    assert 0 <= one[0] < 1


def test_chances_are_even():
    chance = chance_of(0, np.repeat(np.arange(100), 100), np.tile(np.arange(100), 100))
    counts = np.histogram(chance, bins=10, range=(0, 1))[0]
    assert counts.min() > 900
    assert counts.max() < 1100
