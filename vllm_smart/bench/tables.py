"""The tables of a report: arms by batch size."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from vllm_smart.bench.analysis import Comparison, Metric, decode_speed, total_speed
from vllm_smart.bench.document import Heading, Paragraph, Part, Table
from vllm_smart.bench.records import Run
from vllm_smart.bench.statistics import Estimate

UNKNOWN = "-"
_MANY = 8  # requests of which a high percentile means something


def with_interval(ratio: Estimate | None) -> str:
    """A ratio and its 90% interval, if it has one."""
    if ratio is None:
        return UNKNOWN
    if math.isnan(ratio.low):
        return f"{ratio.value:.3f}"
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def speedup_tables(comparison: Comparison) -> Iterator[Part]:
    """Speedups over plain decoding by three definitions of throughput, the headline first."""
    yield Heading("Speedup over plain decoding", 3)
    yield Paragraph("While all requests of the batch decode, so at this concurrency throughout.")
    yield _speedup_table(comparison, decode_speed)
    yield Heading("The same with the tail", 3)
    yield Paragraph(
        "Until the last request has ended, instead of the first: short answers that end at different "
        "times leave the batch smaller and smaller, which plain decoding never does."
    )
    yield _speedup_table(comparison, lambda run: run.decode_tokens_per_s)
    yield Heading("The same with prefill", 3)
    yield Paragraph("From submission to the last token.")
    yield _speedup_table(comparison, total_speed)


def with_prompts(comparison: Comparison, arm: str) -> str:
    """What `arm` makes of plain decoding and the chains from submission to the last token."""
    over_plain = comparison.mean_ratio(arm, comparison.plain, total_speed)
    said = f"{arm}, prompts included: {with_interval(over_plain)} of plain"
    single = comparison.best_single_chain(total_speed)
    if single is None:
        return f"{said}."
    over_best = comparison.mean_over_best_chain(arm, total_speed)
    over_single = comparison.mean_ratio(arm, single.label, total_speed)
    return (
        f"{said}, {with_interval(over_best)} of the best chain of each batch size, "
        f"{with_interval(over_single)} of {single.label}, the best for all."
    )


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


def ablation_table(comparison: Comparison) -> Iterator[Part]:
    """Our policy over itself without one of its parts."""
    if not (comparison.ablations and comparison.ours):
        return
    ours = comparison.ours[0]
    yield Heading("What each part is worth", 3)
    yield Paragraph(f"{ours} over the same without one part: above 1, the part helps.")
    rows = []
    for arm, lacks in comparison.ablations.items():
        ratios = [comparison.ratio(ours, arm, size) for size in comparison.batch_sizes]
        mean = with_interval(comparison.mean_ratio(ours, arm))
        rows.append([f"{arm}: {lacks}", *map(with_interval, ratios), mean])
    yield Table(["without", *_batches(comparison), "geometric mean"], rows)


def latency_tables(comparison: Comparison) -> Iterator[Part]:
    """Throughput and latencies as they were."""
    yield Heading("Throughput and latencies", 3)
    yield Paragraph("Tokens per second while all requests decode, medians over rounds.")
    yield metric_table(comparison, decode_speed, "{:.1f}")
    percentiles = f"median / 99th percentile over requests (from batch {_MANY} on), medians over rounds"
    yield Paragraph(f"Milliseconds per token after the first: {percentiles}.")
    yield _percentile_table(comparison, lambda run: run.tpot_ms)
    yield Paragraph(f"Milliseconds to the first token, all requests arriving at once: {percentiles}.")
    yield _percentile_table(comparison, lambda run: [1e3 * s for s in run.first_token_s])


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


def metric_table(comparison: Comparison, metric: Metric, form: str) -> Table:
    """Medians of `metric`; arms without any are left out."""

    def cells(arm: str) -> list[str]:
        values = [comparison.median_of(arm, size, metric) for size in comparison.batch_sizes]
        return [form.format(value) if math.isfinite(value) else UNKNOWN for value in values]

    return _arm_table(comparison, cells)


def _percentile_table(comparison: Comparison, values: Callable[[Run], list[float]]) -> Table:
    def cells(arm: str) -> list[str]:
        return [_percentiles(comparison.runs(arm, size), values) for size in comparison.batch_sizes]

    return _arm_table(comparison, cells)


def _percentiles(runs: list[Run], values: Callable[[Run], list[float]]) -> str:
    if not runs:
        return UNKNOWN
    mid, high = (float(np.median([np.percentile(values(run), p) for run in runs])) for p in (50, 99))
    return f"{mid:.1f} / {high:.1f}" if len(values(runs[0])) >= _MANY else f"{mid:.1f}"


def _arm_table(comparison: Comparison, cells: Callable[[str], list[str]]) -> Table:
    rows = [[arm, *row] for arm in comparison.labels if set(row := cells(arm)) != {UNKNOWN}]
    return Table(["arm", *_batches(comparison)], rows)


def _batches(comparison: Comparison) -> list[str]:
    return [f"batch {size}" for size in comparison.batch_sizes]
