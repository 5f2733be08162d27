"""What a step consists of, and how well our engine foresaw it."""

import math
from collections.abc import Iterator
from statistics import fmean, median

from vllm_smart.bench.analysis import Comparison
from vllm_smart.bench.document import Heading, Paragraph, Part, Table
from vllm_smart.bench.records import Run
from vllm_smart.bench.tables import UNKNOWN, metric_table

_NOT_AVAILABLE = "n/a"
# A plain step is predicted by the steps before it: so many, or at least so many.
_STEPS_BEFORE, _LEAST_BEFORE = 16, 4


def step_tables(comparison: Comparison) -> Iterator[Part]:
    """Steps, tokens and nodes of each, and where their time goes; medians over rounds."""
    yield Heading("Steps", 3)
    yield Paragraph("Decoding steps of a run.")
    yield metric_table(comparison, lambda run: run.num_decode_steps, "{:.0f}")
    yield Paragraph("Acceptance length: tokens per request and step, bonus token included.")
    yield metric_table(comparison, lambda run: run.acceptance_length, "{:.2f}")
    yield Paragraph("Draft nodes verified per step of the whole batch (counted by our plugin only).")
    yield metric_table(comparison, lambda run: run.counted("draft_nodes", "steps"), "{:.1f}")
    yield Paragraph("Share of steps that verify no draft node (counted by our plugin only).")
    yield metric_table(
        comparison, lambda run: run.counted("steps_without_speculation", "steps"), "{:.2f}"
    )
    yield from _split_table(comparison)
    yield from _energy_table(comparison)


def _split_table(comparison: Comparison) -> Iterator[Part]:
    yield Paragraph(
        "Milliseconds of a decoding step: target forward + drafting + rest = all. The rest is "
        "sampling, the walk, compaction, scheduling and output. Measured on CPUs only."
    )

    def cell(arm: str, size: int) -> str:
        verify = comparison.median_of(arm, size, lambda run: run.mean_step_ms("verify"))
        draft = comparison.median_of(arm, size, lambda run: run.mean_step_ms("draft"))
        total = comparison.median_of(arm, size, lambda run: run.step_ms)
        if math.isnan(total):
            return UNKNOWN
        if math.isnan(verify):
            return f"{_NOT_AVAILABLE} = {total:.1f}"
        return f"{verify:.1f} + {draft:.1f} + {total - verify - draft:.1f} = {total:.1f}"

    rows = [[arm, *(cell(arm, size) for size in comparison.batch_sizes)] for arm in comparison.labels]
    yield Table(["arm", *(f"batch {size}" for size in comparison.batch_sizes)], rows)


def _energy_table(comparison: Comparison) -> Iterator[Part]:
    table = metric_table(comparison, lambda run: run.joules_per_token, "{:.3f}")
    if not table.rows:
        yield Paragraph("Energy: not available (the kernel's RAPL counters cannot be read).")
        return
    yield Paragraph("Joules of the processor packages per generated token, prefill included.")
    yield table


def prediction_tables(comparison: Comparison) -> Iterator[Part]:
    """What our engine predicted of its steps, and what came."""
    arms = [arm for arm in (*comparison.ours, *comparison.ablations) if arm in comparison.labels]
    rows = [row for arm in arms for row in _prediction_rows(comparison, arm)]
    if not rows:
        return
    yield Heading("Predicted and measured", 3)
    yield Paragraph(
        "Over all rounds, steps that read prompts left out. The error of a step's time is "
        "|predicted / measured - 1|; its median is interpolated between the bounds that are counted. "
        "Tokens are of steps that verify trees: what the calibrated probabilities promised, and what "
        f"came. The last row says what the machine allows: steps of {comparison.plain} are all alike, "
        f"and each is predicted by the median of the {_STEPS_BEFORE} before it."
    )
    rows += _alike_rows(comparison)
    columns = ["arm", "steps", "predicted ms", "measured ms", "ratio", "median error", "within 10%"]
    yield Table([*columns, "expected tokens", "emitted tokens", "ratio"], rows)


def _prediction_rows(comparison: Comparison, arm: str) -> Iterator[list[str]]:
    runs = {size: comparison.runs(arm, size) for size in comparison.batch_sizes}
    for size, of_size in runs.items():
        if arm in comparison.ours and _total(of_size, "predicted_steps") > 0:
            yield [f"{arm}, batch {size}", *_prediction_cells(of_size)]
    everything = [run for of_size in runs.values() for run in of_size]
    if _total(everything, "predicted_steps") > 0:
        yield [f"{arm}, all", *_prediction_cells(everything)]


def _alike_rows(comparison: Comparison) -> Iterator[list[str]]:
    """How well plain steps can be told from those before them."""
    pairs = [
        (median(steps[max(0, index - _STEPS_BEFORE) : index]), steps[index])
        for size in comparison.batch_sizes
        for steps in (run.decode_step_ms for run in comparison.runs(comparison.plain, size))
        for index in range(_LEAST_BEFORE, len(steps))
    ]
    if not pairs:
        return
    predicted, measured = (fmean(column) for column in zip(*pairs, strict=True))
    errors = [abs(guess / step - 1.0) for guess, step in pairs]
    within = sum(error <= 0.1 for error in errors) / len(errors)
    cells = [f"{predicted:.2f}", f"{measured:.2f}", _ratio(predicted, measured)]
    cells += [f"{median(errors):.1%}", f"{within:.0%}", *[_NOT_AVAILABLE] * 3]
    yield [f"{comparison.plain}, from steps before", str(len(pairs)), *cells]


def _prediction_cells(runs: list[Run]) -> list[str]:
    steps, predicted, measured, expected, emitted = (
        _total(runs, name)
        for name in (
            "predicted_steps",
            "predicted_ms",
            "measured_ms",
            "expected_tokens",
            "emitted_tokens",
        )
    )
    return [
        f"{steps:.0f}",
        f"{predicted / steps:.2f}",
        f"{measured / steps:.2f}",
        _ratio(predicted, measured),
        *_error_cells(runs),
        _NOT_AVAILABLE if math.isnan(expected) else f"{expected:.0f}",
        _NOT_AVAILABLE if math.isnan(emitted) else f"{emitted:.0f}",
        _ratio(expected, emitted),
    ]


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.3f}" if b > 0 and math.isfinite(a) else _NOT_AVAILABLE


def _total(runs: list[Run], name: str) -> float:
    """Sum of a counter; NaN where it was not counted."""
    return math.fsum(run.count(name) for run in runs) if runs else math.nan


def _error_cells(runs: list[Run]) -> list[str]:
    """The median error of a step's time, and the share of steps within 10%."""
    cumulative = error_histogram(runs)
    if not cumulative or cumulative[-1][1] == 0:
        return [_NOT_AVAILABLE, _NOT_AVAILABLE]
    half = cumulative[-1][1] / 2
    below = max(((b, c) for b, c in cumulative if c < half), default=(0.0, 0.0))
    above = next((b, c) for b, c in cumulative if c >= half)
    within = max((count for bound, count in cumulative if bound <= 0.1), default=math.nan)
    share = f"{within / (2 * half):.0%}"
    if math.isinf(above[0]):
        return [f"> {below[0]:.0%}", share]
    error = below[0] + (above[0] - below[0]) * (half - below[1]) / (above[1] - below[1])
    return [f"{error:.1%}", share]


def error_histogram(runs: list[Run]) -> list[tuple[float, float]]:
    """(upper bound, cumulative count) of `step_time_error` over `runs`, ascending; may be empty."""
    counts: dict[float, float] = {}
    for run in runs:
        histogram = run.counters.get("step_time_error")
        if isinstance(histogram, dict):
            for bound, count in histogram.items():
                counts[float(bound)] = counts.get(float(bound), 0.0) + count
    return sorted(counts.items())
