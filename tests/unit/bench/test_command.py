"""The command: what it leaves behind when it is stopped, and what makes it fail."""

import pytest

from tests.unit.bench.synthetic import mixed_outcome, suite
from vllm_smart.bench import command
from vllm_smart.bench.command import OutputError, run_suite
from vllm_smart.bench.records import Difference
from vllm_smart.bench.runner import Runner

pytest.importorskip("matplotlib")
pytest.importorskip("rich")


def _runner_that(monkeypatch, ends) -> None:
    """Replace the engines' part of a run: half of the measurements, then `ends(results)`."""

    def run(self, say, advance):
        self.results.records.extend(mixed_outcome().records[:12])
        ends(self.results)

    monkeypatch.setattr(Runner, "run", run)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)


def test_an_interrupted_run_leaves_a_report_that_says_what_is_missing(tmp_path, monkeypatch):
    def interrupt(results):
        raise KeyboardInterrupt

    _runner_that(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite(), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "INCOMPLETE" in text
    assert "12 of eagle3 code batch 4" in text
    assert "| smart | 2.000" in text


def test_wrong_text_fails_the_command_after_the_report(tmp_path, monkeypatch):
    place = {"drafter": "eagle3", "workload": "code", "arm": "smart", "batch_size": 1, "repeat": 0}
    wrong = Difference(**place, request=0, index=3, gap=2.0)
    _runner_that(monkeypatch, lambda results: results.differences.append(wrong))
    with pytest.raises(OutputError, match="smart, request 0, token 3"):
        run_suite(suite(), tmp_path)
    assert "FAILED" in (tmp_path / "report.md").read_text()
