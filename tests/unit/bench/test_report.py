"""Reports of invented results: what they say, and that HTML needs no other file."""

import pytest

from tests.unit.bench.synthetic import mixed_outcome, results
from vllm_smart.bench.output_check import wrong_outputs
from vllm_smart.bench.records import Difference
from vllm_smart.bench.report import write_report

pytest.importorskip("matplotlib")


def _report(tmp_path, found) -> str:
    write_report(found, tmp_path)
    return (tmp_path / "report.md").read_text()


def test_a_report_says_where_we_lose(tmp_path):
    text = _report(tmp_path, mixed_outcome())
    assert "smart / plain, geometric mean over batch sizes: 1.500" in text
    assert "least at batch 4, 1.125" in text
    assert "- batch 4: smart is 0.900" in text
    assert "times chain-2" in text
    assert "INCOMPLETE" not in text
    assert "WARNING" not in text


def test_a_win_everywhere_is_said_too(tmp_path):
    found = results({("plain", 1): [10, 10, 11], ("smart", 1): [20, 20, 21]}, batch_sizes=[1])
    assert "Nowhere in this run" in _report(tmp_path, found)


def test_an_interrupted_run_and_a_busy_machine_are_said(tmp_path):
    text = _report(tmp_path, results({("plain", 1): [10.0]}, load_1m=9.0))
    assert "INCOMPLETE" in text
    assert "WARNING" in text


def test_html_is_self_contained_and_escaped(tmp_path):
    found = mixed_outcome()
    found.environment["note"] = "<b>"
    write_report(found, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in text
    assert "&lt;b&gt;" in text
    assert 'src="speedup' not in text
    assert (tmp_path / "speedup-eagle3-code.png").read_bytes().startswith(b"\x89PNG")


def _with_another_token(gap: float | None, **changes):
    found = mixed_outcome(**changes)
    place = {"drafter": "eagle3", "workload": "code", "arm": "smart", "batch_size": 4, "repeat": 0}
    found.differences.append(Difference(**place, request=1, index=3, gap=gap))
    return found


@pytest.mark.parametrize("gap", [0.5, None])
def test_another_token_that_rounding_does_not_explain_is_a_failure(tmp_path, gap):
    found = _with_another_token(gap)
    assert "FAILED: 1 request(s)" in _report(tmp_path, found)
    assert "smart, request 1, token 3" in wrong_outputs(found)[0]


def test_near_ties_are_listed_and_no_failure(tmp_path):
    found = _with_another_token(gap=1e-5)
    text = _report(tmp_path, found)
    assert "smart, request 1, token 3: gap 1.00e-05" in text
    assert "FAILED" not in text
    assert wrong_outputs(found) == []


def test_equal_text_is_said(tmp_path):
    assert "Every token of every arm is equal." in _report(tmp_path, mixed_outcome())


def test_sampled_text_is_not_compared(tmp_path):
    workloads = [{"temperature": 0.8, "name": "code"}]
    found = mixed_outcome(workloads=workloads, stock_runner="v2")
    assert "Not compared: temperature > 0." in _report(tmp_path, found)


def test_predictions_are_shown_where_they_were_counted(tmp_path):
    found = mixed_outcome()
    for record in found.records:
        if record.arm == "smart":
            record.run.counters.update(
                predicted_steps=4.0,
                predicted_ms=36.0,
                measured_ms=40.0,
                expected_tokens=9.0,
                emitted_tokens=10.0,
                step_time_error={"0.05": 1.0, "0.1": 3.0, "inf": 4.0},
            )
    text = _report(tmp_path, found)
    assert "| smart, batch 1 | 12 | 9.00 | 10.00 | 0.900 | 7.5% | 75% | 27 | 30 | 0.900 |" in text


def test_predictions_stand_beside_what_the_machine_allows(tmp_path):
    """Plain steps of 100 ms, of which the last took 125."""
    found = mixed_outcome()
    for index, record in enumerate(found.records):
        if record.arm == "plain":
            ends = [0.1 * (1 + step) for step in range(7)] + [0.825]
            first = [0.1] * record.batch_size
            run = record.run.model_copy(update={"step_end_s": ends, "first_token_s": first})
            found.records[index] = record.model_copy(update={"run": run})
        else:
            record.run.counters.update(predicted_steps=4.0, predicted_ms=36.0, measured_ms=40.0)
    text = _report(tmp_path, found)
    # Of each of six runs two steps are told from at least four before them.
    assert "| plain, from steps before | 12 | 100.00 | 112.50 | 0.889 | 10.0% | 50% |" in text


def test_predictions_that_were_not_counted_are_said_to_be_missing(tmp_path):
    found = mixed_outcome()
    for record in found.records:
        if record.arm == "smart":
            record.run.counters.update(predicted_steps=4.0, predicted_ms=36.0, measured_ms=40.0)
    assert "| 0.900 | n/a | n/a | n/a | n/a | n/a |" in _report(tmp_path, found)


def test_a_step_is_split_where_it_was_timed(tmp_path):
    found = mixed_outcome()
    record = next(r for r in found.records if (r.arm, r.batch_size) == ("chain-2", 1))
    timed = {"step_verify_s": [0.05] * 8, "step_draft_s": [0.02] * 8}
    record_index = found.records.index(record)
    run = record.run.model_copy(update=timed)
    found.records[record_index] = record.model_copy(update={"run": run})
    text = _report(tmp_path, found)
    assert "50.0 + 20.0 + " in text
    assert "n/a = " in text


def test_energy_is_shown_per_token_or_said_to_be_unknown(tmp_path):
    found = mixed_outcome()
    assert "Energy: not available" in _report(tmp_path, found)
    for index, record in enumerate(found.records):
        run = record.run.model_copy(update={"energy_j": 4.0 * record.batch_size})
        found.records[index] = record.model_copy(update={"run": run})
    assert "| plain | 0.500 | 0.500 |" in _report(tmp_path, found)
