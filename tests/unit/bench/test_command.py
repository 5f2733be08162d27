"""The command: what it leaves behind when it is stopped, and what makes it fail."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.unit.bench.synthetic import mixed_outcome, results, suite
from vllm_smart.bench import command
from vllm_smart.bench.command import OutputError, run_suite
from vllm_smart.bench.records import Difference
from vllm_smart.bench.runner import Runner
from vllm_smart.cli import app

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


@pytest.mark.parametrize(("cores", "serves", "expected"), [(8, False, 8), (8, True, 7), (1, True, 1)])
def test_servers_leave_a_core_to_their_scheduler(cores, serves, expected, monkeypatch):
    monkeypatch.setattr(command.os, "cpu_count", lambda: cores)
    serving = {"serving": {"arms": ["plain"], "rates": [1.0]}} if serves else {}
    assert command.default_threads(suite(**serving)) == expected


@pytest.fixture
def quick_suite(tmp_path, monkeypatch):
    """Path of a suite whose runs are invented."""
    arms = [{"kind": "plain"}, {"kind": "smart"}]
    settings = suite(arms=arms, batch_sizes=[1]).model_dump(mode="json", exclude_defaults=True)
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(settings))

    def use(speeds: list[float]) -> list[str]:
        found = results({("plain", 1): [10, 10, 10], ("smart", 1): speeds}, arms=arms, batch_sizes=[1])
        monkeypatch.setattr("vllm_smart.bench.command.run_suite", lambda *_: found)
        return ["bench", str(path), "--out", str(tmp_path / "out")]

    return use


def test_a_stored_result_guards_against_regressions(tmp_path, quick_suite):
    stored = str(tmp_path / "baseline.json")
    assert CliRunner().invoke(app, [*quick_suite([20, 20, 21]), "--store", stored]).exit_code == 0
    same = CliRunner().invoke(app, [*quick_suite([20, 20, 21]), "--against", stored])
    assert (same.exit_code, " ok" in same.output) == (0, True)
    slower = CliRunner().invoke(app, [*quick_suite([12, 12, 13]), "--against", stored])
    assert (slower.exit_code, "SLOWER" in slower.output) == (2, True)


def test_a_stored_result_of_another_suite_is_refused_before_anything_runs(tmp_path, quick_suite):
    stored = str(tmp_path / "baseline.json")
    command_line = quick_suite([20, 20, 21])
    CliRunner().invoke(app, [*command_line, "--store", stored])
    text = Path(command_line[1]).read_text()
    Path(command_line[1]).write_text(text + "seed: 7\n")
    refused = CliRunner().invoke(app, [*command_line, "--against", stored])
    assert (refused.exit_code, "another suite" in refused.output) == (2, True)
