"""The tables of a report: arms by batch size."""

import math
from collections.abc import Iterator

import numpy as np

from vllm_smart.bench.analysis import Comparison, Metric, decode_speed
from vllm_smart.bench.document import Heading, Paragraph, Part, Table
from vllm_smart.bench.statistics import Estimate

_UNKNOWN = "-"


def with_interval(ratio: Estimate | None) -> str:
    """A ratio and its 90% interval, if it has one."""
    if ratio is None:
        return _UNKNOWN
    if math.isnan(ratio.low):
        return f"{ratio.value:.3f}"
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def speedup_tables(comparison: Comparison) -> Iterator[Part]:
    """Speedups over plain decoding by three definitions of throughput, the headline first."""
    yield Heading("Speedup over plain decoding", 3)
    yield _speedup_table(comparison, decode_speed)
    yield Heading("The same while the batch is full", 3)
    yield Paragraph("Until the first request ends: as under steady load, without a tail of stragglers.")
    yield _speedup_table(comparison, lambda run: run.full_batch_tokens_per_s)
    yield Heading("The same with prefill", 3)
    yield _speedup_table(comparison, lambda run: run.tokens_per_s)


def chain_table(comparison: Comparison) -> Iterator[Part]:
    """The best fixed chain of each batch size, and our policy against it."""
    if not comparison.chains:
        return
    yield Heading("Against the best fixed chain by hindsight", 3)
    yield Paragraph("The chain is chosen after the fact by the same measurements, in its favour.")
    rows = []
    for size in comparison.batch_sizes:
        best = comparison.best_chain(size)
        if best is None:
            continue
        ours = [with_interval(comparison.over_best_chain(arm, size)) for arm in comparison.ours]
        rows.append([str(size), best.label, with_interval(best.speedup), *ours])
    columns = ["batch", "best chain", "its speedup", *(f"{a} / best chain" for a in comparison.ours)]
    means = [with_interval(comparison.mean_over_best_chain(arm)) for arm in comparison.ours]
    yield Table(columns, [*rows, ["geometric mean", "", "", *means]])


def quantity_tables(comparison: Comparison) -> Iterator[Part]:
    """What explains the speedups: medians over rounds."""
    yield Heading("Plain throughput and latencies", 3)
    yield Paragraph("Decode tokens per second.")
    yield _table(comparison, decode_speed, "{:.1f}")
    yield Paragraph("Milliseconds per token after the first, median over requests.")
    yield _table(comparison, lambda run: float(np.median(run.tpot_ms)), "{:.2f}")
    yield Paragraph("The same, 99th percentile over requests.")
    yield _table(comparison, lambda run: float(np.percentile(run.tpot_ms, 99)), "{:.2f}")
    yield Paragraph("Milliseconds to the first token, median over requests.")
    yield _table(comparison, lambda run: 1e3 * float(np.median(run.first_token_s)), "{:.1f}")
    yield Heading("Acceptance length", 3)
    yield Paragraph("Tokens per request and step while decoding, bonus token included.")
    yield _table(comparison, lambda run: run.acceptance_length, "{:.2f}")
    yield Heading("Draft nodes and the predicted time of a step", 3)
    yield Paragraph("Draft nodes verified per step of the whole batch (arms of our plugin).")
    yield _table(comparison, lambda run: run.counted("draft_nodes", "steps"), "{:.1f}")
    yield Paragraph("Share of steps that verify no draft node.")
    yield _table(comparison, lambda run: run.counted("steps_without_speculation", "steps"), "{:.2f}")
    yield Paragraph("Predicted milliseconds per step (policies that predict).")
    yield _table(comparison, lambda run: run.counted("predicted_ms", "predicted_steps"), "{:.2f}")
    yield Paragraph("Measured milliseconds of the same steps.")
    yield _table(comparison, lambda run: run.counted("measured_ms", "predicted_steps"), "{:.2f}")


def _speedup_table(comparison: Comparison, metric: Metric) -> Table:
    rows = []
    for arm in comparison.labels:
        if arm != comparison.plain:
            ratios = [
                comparison.ratio(arm, comparison.plain, size, metric) for size in comparison.batch_sizes
            ]
            mean = comparison.mean_ratio(arm, comparison.plain, metric)
            rows.append([arm, *map(with_interval, ratios), with_interval(mean)])
    return Table(["arm", *_batches(comparison), "geometric mean"], rows)


def _table(comparison: Comparison, metric: Metric, form: str) -> Table:
    """Medians of `metric`; arms without any are left out."""

    def cells(arm: str) -> list[str]:
        values = [comparison.median_of(arm, size, metric) for size in comparison.batch_sizes]
        return [form.format(value) if math.isfinite(value) else _UNKNOWN for value in values]

    rows = [[arm, *row] for arm in comparison.labels if set(row := cells(arm)) != {_UNKNOWN}]
    return Table(["arm", *_batches(comparison)], rows)


def _batches(comparison: Comparison) -> list[str]:
    return [f"batch {size}" for size in comparison.batch_sizes]
