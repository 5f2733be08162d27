"""What the numbers of one engine say, over some time."""

from dataclasses import dataclass
from typing import Any

from vllm_smart.reports.families import BATCH, DEPTH, REASON, SOURCE
from vllm_smart.top.scrape import Samples


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


@dataclass(frozen=True)
class BatchRow:
    """Steps of some batch size."""

    batch: str
    steps: float
    nodes: float | None  # per request and step; None where nothing ran
    depth: float | None  # of trees, on average
    table_nodes: float  # per request, that the cost table gives a middling drafter
    table_speedup: float
    speedup: float | None  # over plain decoding


@dataclass(frozen=True)
class AcceptanceRow:
    """Verified nodes of some depth, or of some source."""

    what: str
    verified: float
    accepted: float
    rate: float | None  # accepted / verified
    calibration: float | None  # accepted / expected: 1 = as foretold


@dataclass(frozen=True)
class View:
    """One engine, over some time; ratios are None where nothing has happened."""

    info: dict[str, str]
    steps: float
    speedup: float | None  # over plain decoding
    saved_s: float
    acceptance_length: float | None  # tokens per tree, bonus included
    predicted_over_measured: float | None  # step times
    mean_error: float | None  # of predicted step times, either way
    drafter_runs: bool
    expected_gain: float
    rest_share: float | None  # of steps in which no drafter ran
    rests: dict[str, float]  # of these, by reason
    jit_compilations: float
    batches: tuple[BatchRow, ...]
    depths: tuple[AcceptanceRow, ...]
    sources: tuple[AcceptanceRow, ...]


def view(samples: Samples) -> View:
    """What `samples` say; see `Samples.since` for what has come of late."""
    of = samples.total
    steps, step_s = of("steps_total"), of("step_seconds_total")
    plain_s, rests = of("plain_seconds_total"), of("steps_without_drafting_total")
    errors = of("step_time_error_ratio_sum"), of("step_time_error_ratio_count")
    shown = [reason for reason in REASON.values if of("steps_without_drafting_total", reason=reason)]
    trees = of("trees_total")
    return View(
        info=next(iter(samples.labels_of("engine_info")), {}),
        steps=steps,
        speedup=_ratio(plain_s, step_s),
        saved_s=plain_s - step_s,
        acceptance_length=_ratio(trees + of("accepted_nodes_total"), trees),
        predicted_over_measured=_ratio(
            of("predicted_step_seconds_total"), of("measured_step_seconds_total")
        ),
        mean_error=_ratio(*errors),
        drafter_runs=of("drafter_runs") > 0,
        expected_gain=of("drafting_gain_ratio"),
        rest_share=_ratio(rests, steps),
        rests={reason: of("steps_without_drafting_total", reason=reason) for reason in shown},
        jit_compilations=of("jit_compilations_total"),
        batches=tuple(
            _batch(samples, batch) for batch in BATCH.values if of("steps_total", batch=batch)
        ),
        depths=_acceptance(samples, "depth", DEPTH.values),
        sources=_acceptance(samples, "source", SOURCE.values),
    )


def _batch(samples: Samples, batch: str) -> BatchRow:
    def of(name: str) -> float:
        return samples.total(name, batch=batch)

    return BatchRow(
        batch=batch,
        steps=of("steps_total"),
        nodes=_ratio(of("chosen_nodes_total"), of("step_requests_total")),
        depth=_ratio(of("chosen_tree_levels_total"), of("chosen_trees_total")),
        table_nodes=of("table_nodes"),
        table_speedup=of("table_speedup_ratio"),
        speedup=_ratio(of("plain_seconds_total"), of("step_seconds_total")),
    )


def _acceptance(samples: Samples, label: str, values: tuple[str, ...]) -> tuple[AcceptanceRow, ...]:
    rows = []
    for value in values:
        by: dict[str, Any] = {label: value}
        verified = samples.total("draft_nodes_total", **by)
        if verified:
            accepted = samples.total("accepted_nodes_total", **by)
            expected = samples.total("expected_nodes_total", **by)
            rate, calibration = _ratio(accepted, verified), _ratio(accepted, expected)
            rows.append(AcceptanceRow(value, verified, accepted, rate, calibration))
    return tuple(rows)
