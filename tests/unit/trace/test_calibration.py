import numpy as np
import pytest

from tests.unit.trace.hand_made import decision, drafted, outcome, trace, verified
from vllm_smart.errors import TraceError
from vllm_smart.trace import calibration, calibration_report, plot_calibration
from vllm_smart.trace.calibration import Reliability

STEPS = trace(
    decision(0, drafted()),
    outcome(0, verified("a", (1,), (1,), 40)),
)


def test_the_error_is_the_mean_gap_over_candidates():
    prob = np.float32([0.05, 0.05, 0.95, 0.95, 1.0])
    accepted = np.array([False, False, True, True, False])
    found = Reliability.of(prob, accepted)
    assert found.count.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    last = (0.95 + 0.95 + 1.0) / 3 - 2 / 3
    assert found.expected_error == pytest.approx((2 * 0.05 + 3 * last) / 5, abs=1e-6)
    assert np.isnan(found.predicted[1])


def test_certain_predictions_that_come_true_have_no_error():
    found = Reliability.of(np.float32([0.0, 1.0]), np.array([False, True]))
    assert found.expected_error == 0.0


def test_all_candidates_with_a_known_verdict_count_verified_or_not():
    found = calibration(STEPS)
    # Paths as drafted: 0.5, 0.5, 0.25, 0.125; calibrated: 0.5, 0.25, 0.4, 0.05. Taken: 1 and 4.
    assert found.before.count.tolist() == [0, 1, 1, 0, 0, 2, 0, 0, 0, 0]
    assert found.after.count.tolist() == [1, 0, 1, 0, 1, 1, 0, 0, 0, 0]
    assert found.before.accepted[5] == 0.5
    assert found.before.expected_error == pytest.approx((0.875 + 0.25 + 2 * 0.0) / 4)
    assert found.after.expected_error == pytest.approx((0.95 + 0.25 + 0.4 + 0.5) / 4)


def test_the_report_names_both_errors_and_every_bin():
    lines = list(calibration_report(calibration(STEPS)))
    assert len(lines) == 14
    assert lines[1] == "          model: expected error 0.5250 of 4 paths"
    assert "4 paths: expected error 0.2812 as drafted, 0.5250 calibrated" in lines[0]
    assert lines[5].split() == ["0.1", "-", "0.2", "1", "0.125", "1.000", "0", "-", "-"]


def test_each_source_has_an_error_of_its_own():
    of = drafted()
    steps = trace(
        decision(0, of.model_copy(update={"source": np.array([-1, 2, 1, 0, 1])})),
        outcome(0, verified("a", (1,), (1,), 40)),
    )
    found = calibration(steps).by_source
    # Path probabilities are 0.5, 0.25, 0.4 and 0.05. Taken: 1 and 4.
    errors = {name: side.expected_error for name, side in found.items()}
    assert errors == pytest.approx({"model": 0.4, "ngram": (0.25 + 0.95) / 2, "both": 0.5})


def test_candidates_of_coupled_requests_have_an_error_of_their_own():
    coupled = drafted("b").model_copy(update={"is_coupled": True})
    steps = trace(
        decision(0, drafted(), coupled),
        outcome(0, verified("a", (1,), (1,), 40), verified("b", (1,), (), 20)),
    )
    found = calibration(steps).by_source
    assert list(found) == ["model", "model, coupled"]
    # Of path probabilities 0.5, 0.25, 0.4 and 0.05 the second is taken; nothing is known below it.
    assert found["model, coupled"].expected_error == pytest.approx((0.5 + 0.75 + 0.4 + 0.05) / 4)


def test_the_picture_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    plot_calibration(calibration(STEPS), tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_a_trace_without_outcomes_says_nothing():
    with pytest.raises(TraceError, match="nothing to calibrate"):
        calibration(trace(decision(0, drafted())))
