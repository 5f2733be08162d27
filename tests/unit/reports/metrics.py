"""Counters with something in them, and what Prometheus makes of them."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vllm_smart.reports.stats import StepStats
from vllm_smart.scheduler import Rest


def count_something(shared) -> StepStats:
    """A rest, a step, and three predictions."""
    stats = StepStats(shared.values)
    stats.record_rest(3, Rest.PLAIN_IS_FASTER)
    stats.record_time(2, step_s=0.02, plain_s=0.03)
    for predicted in (0.9, 1.11, 1.16):
        stats.record_prediction(predicted, 1.0)
    stats.show_gate(True, 0.25)
    return stats


def samples(registry, name: str, engine: str | None = None) -> dict:
    """Values of a metric of an engine, or of all, by its other labels."""
    text = generate_latest(registry).decode()
    return {
        tuple(v for k, v in s.labels.items() if k not in ("model_name", "engine")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name == f"vllm_smart:{name}" and engine in (None, s.labels["engine"])
    }
