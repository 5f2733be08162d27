"""The regression guard: what is an alarm, what is noise, and what cannot be compared."""

import pytest

from tests.unit.bench.synthetic import mixed_outcome, results, suite
from vllm_smart.bench.guard import (
    RegressionError,
    baseline_of,
    change_lines,
    check_regressions,
    load_baseline,
)
from vllm_smart.errors import ConfigError


def _run(smart: list[float]):
    arms = [{"kind": "plain"}, {"kind": "smart"}]
    speeds = {("plain", 1): [10, 10, 10], ("smart", 1): smart}
    return baseline_of(results(speeds, arms=arms, batch_sizes=[1]))


def test_the_same_run_is_no_regression():
    stored = baseline_of(mixed_outcome())
    check_regressions(stored, stored)
    assert all(" ok" in line for line in list(change_lines(stored, stored))[1:])


def test_a_certain_loss_is_an_alarm_that_names_the_arm():
    with pytest.raises(RegressionError, match="eagle3 code batch 1 smart"):
        check_regressions(_run([20, 20, 21]), _run([15, 15, 16]))


def test_a_small_loss_is_none_however_certain():
    check_regressions(_run([20, 20, 20]), _run([19, 19, 19]))


def test_a_large_loss_within_the_noise_is_shown_and_no_alarm():
    stored, now = _run([20, 20, 21]), _run([12, 15, 21])
    check_regressions(stored, now)
    assert "slower, or noise" in "\n".join(change_lines(stored, now))


def test_only_our_arms_are_guarded():
    assert {name.split()[-1] for name in baseline_of(mixed_outcome()).ratios} == {"chain-2", "smart"}


def test_what_is_incomplete_or_has_no_interval_is_not_stored():
    with pytest.raises(ConfigError, match="incomplete"):
        baseline_of(results({("plain", 1): [10, 10, 10]}))
    speeds, arms = {("plain", 1): [10], ("smart", 1): [10]}, [{"kind": "plain"}, {"kind": "smart"}]
    once = results(speeds, arms=arms, batch_sizes=[1], repeats=1)
    with pytest.raises(ConfigError, match="repeats=1"):
        baseline_of(once)


def test_a_stored_result_of_another_suite_says_what_to_do(tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(baseline_of(mixed_outcome()).model_dump_json())
    assert load_baseline(path, mixed_outcome().suite).ratios
    with pytest.raises(ConfigError, match=r"another suite.*--store"):
        load_baseline(path, suite(seed=1))


@pytest.mark.parametrize("content", [None, "{}", "nonsense"])
def test_a_stored_result_that_cannot_be_read_says_what_to_do(tmp_path, content):
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"baseline\.json.*--store"):
        load_baseline(path, suite())
