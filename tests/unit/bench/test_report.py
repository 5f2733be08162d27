"""Reports of invented results: what they say, and that HTML needs no other file."""

import pytest

from tests.unit.bench.synthetic import mixed_outcome, results
from vllm_smart.bench.report import unexpected_mismatches, write_report

pytest.importorskip("matplotlib")


def _report(tmp_path, found) -> str:
    write_report(found, tmp_path)
    return (tmp_path / "report.md").read_text()


def test_a_report_says_where_we_lose(tmp_path):
    text = _report(tmp_path, mixed_outcome())
    assert "smart / plain, geometric mean over batch sizes: 1.500" in text
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
    assert (tmp_path / "speedup-eagle3.png").read_bytes().startswith(b"\x89PNG")


def _with_another_token(**changes):
    found = mixed_outcome(**changes)
    next(r for r in found.records if r.arm == "smart").run.token_ids[0] = [7] * 8
    return found


def test_other_text_in_float32_is_a_failure(tmp_path):
    found = _with_another_token()
    assert "FAILED" in _report(tmp_path, found)
    assert "smart: 1 of 15" in unexpected_mismatches(found)[0]


def test_other_text_in_bfloat16_is_counted(tmp_path):
    found = _with_another_token(engine={"dtype": "bfloat16"})
    assert "smart: 1 of 15 requests differ" in _report(tmp_path, found)
    assert unexpected_mismatches(found) == []


def test_sampled_text_is_not_compared(tmp_path):
    found = _with_another_token(temperature=0.8, stock_runner="v2")
    assert "Not compared" in _report(tmp_path, found)
    assert unexpected_mismatches(found) == []
