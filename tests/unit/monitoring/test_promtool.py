"""Prometheus' own tool over what is exported and over the rules, where it is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

from tests.unit.reports.metrics import count_something
from vllm_smart.reports.exporter import EngineSeries, Metrics

PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian's package prometheus)")
PROMETHEUS = Path(__file__).parents[3] / "monitoring" / "prometheus"
LABELS = {"job": "vllm", "instance": "here", "model_name": "demo", "engine": "0"}
DAY = 1600  # minutes, and some more


def promtool(*arguments: str, text: str = "") -> subprocess.CompletedProcess:
    command = [PROMTOOL, *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=PROMETHEUS)


def test_the_only_complaint_about_metrics_is_the_colon_that_vllms_have_too(shared, types, registry):
    series = EngineSeries(Metrics(types), "model", 0)
    count_something(shared)
    series.update(shared.values, shared.about)
    text = generate_latest(registry).decode()
    # Which the client adds, and Prometheus' tool takes for counters.
    lines = [line for line in text.splitlines(keepends=True) if "_created" not in line]
    said = promtool("check", "metrics", text="".join(lines)).stderr.splitlines()
    assert said
    assert [line for line in said if not line.endswith("metric names should not contain ':'")] == []


def test_prometheus_takes_the_configuration_and_the_rules():
    checked = promtool("check", "config", "prometheus.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "6 rules found" in checked.stdout


# What each minute adds to two counters, on the first day and on the second; and how many minutes of the
# second are over when the alert is on.
CASES = {
    "VllmSmartSlowerThanPlain": {
        "plain_seconds_total": (60, 57),
        "step_seconds_total": (60, 60),
        "after": 25,
    },
    "VllmSmartPredictionOff": {
        "step_time_error_ratio_sum": (10, 40),
        "step_time_error_ratio_count": (100, 100),
        "after": 45,
    },
    "VllmSmartAcceptanceHalved": {
        "accepted_nodes_total": (20, 8),
        "trees_total": (10, 10),
        "after": 120,
    },
    "VllmSmartResting": {
        "steps_without_speculation_total": (50, 99),
        "steps_total": (100, 100),
        "after": 1590,
    },
}


def series(name: str, first: int, second: int) -> dict[str, str]:
    """A counter over two days."""
    labels = ", ".join(f'{label}="{value}"' for label, value in LABELS.items())
    values = f"0+{first}x{DAY} {first * DAY}+{second}x{DAY}"
    return {"series": f"vllm_smart:{name}{{{labels}}}", "values": values}


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_on_the_second_day_alone(tmp_path, alert):
    adds = dict(CASES[alert])
    after = adds.pop("after")
    query = f'count(ALERTS{{alertname="{alert}", alertstate="firing", model_name="demo"}})'
    test = {
        "interval": "1m",
        "input_series": [series(name, *steps) for name, steps in adds.items()],
        "promql_expr_test": [
            {"expr": query, "eval_time": f"{DAY}m", "exp_samples": []},
            {
                "expr": query,
                "eval_time": f"{DAY + after}m",
                "exp_samples": [{"labels": "{}", "value": 1}],
            },
        ],
    }
    path = tmp_path / "test.yaml"
    rules = str(PROMETHEUS / "rules.yaml")
    path.write_text(
        yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": [test]})
    )
    ran = promtool("test", "rules", str(path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
