"""What workers count, as metrics of Prometheus."""

import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from tests.prometheus_lint import complaints
from tests.unit.reports.metrics import count_something, samples
from vllm_smart.reports.exporter import EngineSeries, Metrics


def test_what_a_worker_counts_reaches_prometheus_once(shared, types, registry):
    series = EngineSeries(Metrics(types), "model", 3)
    stats = count_something(shared)
    shared.describe({"version": "1", "policy": "smart", "drafter": "eagle3", "table": "t.json"})
    for _ in range(3):
        series.update(shared.values, shared.about)
    assert samples(registry, "steps_total")["2",] == 1
    assert samples(registry, "steps_without_drafting_total")["plain_is_faster",] == 1
    assert samples(registry, "step_seconds_total")["2",] == pytest.approx(0.02)
    assert samples(registry, "plain_seconds_total")["2",] == pytest.approx(0.03)
    assert samples(registry, "drafter_runs") == {(): 1}
    assert samples(registry, "step_time_error_ratio_count") == {("over",): 2, ("under",): 1}
    sums = samples(registry, "step_time_error_ratio_sum")
    assert sums == {("over",): pytest.approx(0.27), ("under",): pytest.approx(0.1)}
    buckets = samples(registry, "step_time_error_ratio_bucket")
    assert (buckets["0.1", "over"], buckets["0.15", "over"], buckets["0.2", "over"]) == (0, 1, 2)
    stats.record_time(2, step_s=0.02, plain_s=0.03)
    series.update(shared.values, shared.about)
    assert samples(registry, "step_seconds_total")["2",] == pytest.approx(0.04)


def test_another_policy_takes_the_place_of_the_one_before(shared, types, registry):
    series = EngineSeries(Metrics(types), "model", 0)
    for policy in ("smart", "off"):
        shared.describe({"version": "1", "policy": policy, "drafter": "ngram", "table": "none"})
        series.update(shared.values, shared.about)
    shown = samples(registry, "engine_info")
    assert {labels: value for labels, value in shown.items() if "smart" in labels or value} == {
        ("ngram", "smart", "none", "1"): 0,
        ("ngram", "off", "none", "1"): 1,
    }


def test_the_exposition_follows_the_conventions(shared, types, registry):
    series = EngineSeries(Metrics(types), "model", 0)
    count_something(shared)
    shared.describe({"version": "1", "policy": "smart", "drafter": "ngram", "table": "none"})
    series.update(shared.values, shared.about)
    assert list(complaints(generate_latest(registry).decode())) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("# HELP vllm:a Of vLLM.\n# TYPE vllm:a gauge\nvllm:a 1\n", "no metric of ours"),
        (
            "# HELP vllm_smart:step_ms_total T.\n# TYPE vllm_smart:step_ms_total counter\n"
            'vllm_smart:step_ms_total{engine="0",model_name="m"} 1\n',
            "no base unit",
        ),
        (
            "# HELP vllm_smart:steps_total T.\n# TYPE vllm_smart:steps_total counter\n"
            'vllm_smart:steps_total{engine="0"} 1\n',
            "not vLLM's",
        ),
        (
            "# HELP vllm_smart:nodes T.\n# TYPE vllm_smart:nodes histogram\n"
            'vllm_smart:nodes_bucket{engine="0",model_name="m",le="+Inf"} 1\n',
            "of a histogram",
        ),
    ],
)
def test_the_lint_finds_what_is_wrong(text, complaint):
    assert any(complaint in found for found in complaints(text))


def test_several_processes_of_prometheus_share_the_metrics(tmp_path):
    """As with several API servers: the one that speaks is not the one that is asked."""
    code = (
        "from vllm_smart.reports.exporter import EngineSeries, MetricTypes, metrics_of\n"
        "from vllm_smart.reports.shared import SharedCounters, new_prefix\n"
        "from vllm_smart.reports.stats import StepStats\n"
        "shared = SharedCounters.create(new_prefix(), 0)\n"
        "StepStats(shared.values).record_time(2, 0.02, 0.03)\n"
        "EngineSeries(metrics_of(MetricTypes()), 'model', 0).update(shared.values, None)\n"
    )
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    assert samples(registry, "plain_seconds_total")["2",] == pytest.approx(0.03)
    assert list(complaints(generate_latest(registry).decode())) == []
