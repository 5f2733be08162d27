"""Views in words and tables, for whatever shows them: each is a heading and rows of texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_smart.top.view import AcceptanceRow, View

_NOTHING = "-"
_REASONS = {
    "plain_is_faster": "plain decoding is faster",
    "measures_plain": "it looks at what plain steps cost",
    "prompts": "prompts come first",
    "settings": "the settings allow no draft",
    "ngrams_suffice": "n-grams promise enough for the step",
    "no_candidates": "no request lets it, or there is nothing to draft from",
}


@dataclass(frozen=True)
class Cells:
    """A table; its first column names rows, the others are numbers."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def about(overall: View) -> str:
    """What the engine speculates by."""
    info = overall.info
    return ", ".join(
        f"{name} {info[name]}" for name in ("policy", "drafter", "table", "version") if name in info
    )


def summary(now: View, overall: View) -> Cells:
    """The figures of one engine, of late and since it started."""
    lines: tuple[tuple[str, Callable[[View], str]], ...] = (
        ("speed-up over plain decoding", lambda v: _number(v.speedup, "{:.2f}x")),
        ("seconds saved", lambda v: f"{round(v.saved_s, 1) + 0.0:.1f}"),
        ("steps", lambda v: f"{v.steps:.0f}"),
        ("tokens per tree", lambda v: _number(v.acceptance_length, "{:.2f}")),
        ("predicted / measured step time", lambda v: _number(v.predicted_over_measured, "{:.2f}")),
        ("mean error of it", lambda v: _number(v.mean_error, "{:.0%}")),
        ("steps at rest", lambda v: _number(v.rest_share, "{:.0%}")),
        ("compiled while serving", lambda v: f"{v.jit_compilations:.0f}"),
    )
    rows = [(name, format_of(now), format_of(overall)) for name, format_of in lines]
    return Cells(("", "now", "since start"), rows)


def why(now: View) -> str:
    """Whether the drafter runs, and why steps were at rest."""
    state = "runs" if now.drafter_runs else "rests, because plain decoding is faster"
    line = f"The drafter {state}; expected gain {now.expected_gain:+.0%}."
    if now.rests:
        total = sum(now.rests.values())
        parts = [f"{_REASONS[reason]} ({count / total:.0%})" for reason, count in now.rests.items()]
        line += f" Of the steps at rest: {', '.join(parts)}."
    return line


def batches(now: View, overall: View) -> Cells:
    """By batch size."""
    of_late = {row.batch: row for row in now.batches}
    rows = []
    for row in overall.batches:
        late = of_late.get(row.batch)
        rows.append(
            (
                row.batch,
                f"{row.steps:.0f}",
                _number(row.nodes, "{:.1f}"),
                f"{row.table_nodes:.1f}" if row.table_speedup else _NOTHING,
                _number(row.depth, "{:.1f}"),
                _number(row.speedup, "{:.2f}x"),
                f"{row.table_speedup:.2f}x" if row.table_speedup else _NOTHING,
                _number(late.speedup if late else None, "{:.2f}x"),
            )
        )
    head = ("batch", "steps", "nodes each", "table says", "depth", "speed-up", "table says", "now")
    return Cells(head, rows)


def acceptance(overall: View) -> Cells:
    """By depth, and by who has named the nodes."""
    named: list[tuple[str, AcceptanceRow]] = [(f"depth {row.what}", row) for row in overall.depths]
    named += [(row.what, row) for row in overall.sources]
    rows = [
        (
            name,
            f"{row.verified:.0f}",
            f"{row.accepted:.0f}",
            _number(row.rate, "{:.0%}"),
            _number(row.calibration, "{:.2f}"),
        )
        for name, row in named
    ]
    return Cells(("nodes of", "verified", "accepted", "rate", "accepted / expected"), rows)


def _number(value: float | None, text: str) -> str:
    return _NOTHING if value is None else text.format(value)
