"""Views as a person sees them."""

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table

from vllm_smart.top.scrape import Engine
from vllm_smart.top.view import AcceptanceRow, View

_NOTHING = "-"
_REASONS = {
    "plain_is_faster": "plain decoding is faster",
    "measures_plain": "it looks at what plain steps cost",
    "prompts": "only prompts are computed",
    "settings": "the settings allow no draft",
    "no_candidates": "no request lets it, or there is nothing to draft from",
}


def render(engine: Engine, now: View, overall: View) -> RenderableType:
    """One engine: of late, and since its server started.

    Args:
        now: of the time since the last look.
        overall: since the server started.
    """
    info = overall.info
    words = [
        f"{name} {info[name]}" for name in ("policy", "drafter", "table", "version") if name in info
    ]
    title = f"[bold]{engine}[/bold]\n[dim]{', '.join(words)}[/dim]"
    return Group(
        title, _summary(now, overall), _why(now), _batches(now, overall), _acceptance(overall), ""
    )


def _summary(now: View, overall: View) -> Table:
    table = _table("", "now", "since start")
    lines: tuple[tuple[str, Callable[[View], str]], ...] = (
        ("speed-up over plain decoding", lambda v: _number(v.speedup, "{:.2f}x")),
        ("seconds saved", lambda v: f"{v.saved_s:.1f}"),
        ("steps", lambda v: f"{v.steps:.0f}"),
        ("tokens per tree", lambda v: _number(v.acceptance_length, "{:.2f}")),
        ("predicted / measured step time", lambda v: _number(v.predicted_over_measured, "{:.2f}")),
        ("mean error of it", lambda v: _number(v.mean_error, "{:.0%}")),
        ("steps at rest", lambda v: _number(v.rest_share, "{:.0%}")),
        ("compiled while serving", lambda v: f"{v.jit_compilations:.0f}"),
    )
    for name, format_of in lines:
        table.add_row(name, format_of(now), format_of(overall))
    return table


def _why(now: View) -> str:
    state = "runs" if now.drafter_runs else "rests, because plain decoding is faster"
    line = f"The drafter {state}; expected gain {now.expected_gain:+.0%}."
    if now.rests:
        total = sum(now.rests.values())
        parts = [f"{_REASONS[reason]} ({count / total:.0%})" for reason, count in now.rests.items()]
        line += f" Of the steps at rest: {', '.join(parts)}."
    return line


def _batches(now: View, overall: View) -> Table:
    table = _table(
        "batch", "steps", "nodes each", "table says", "depth", "speed-up", "table says", "now"
    )
    of_late = {row.batch: row for row in now.batches}
    for row in overall.batches:
        late = of_late.get(row.batch)
        table.add_row(
            row.batch,
            f"{row.steps:.0f}",
            _number(row.nodes, "{:.1f}"),
            f"{row.table_nodes:.1f}" if row.table_speedup else _NOTHING,
            _number(row.depth, "{:.1f}"),
            _number(row.speedup, "{:.2f}x"),
            f"{row.table_speedup:.2f}x" if row.table_speedup else _NOTHING,
            _number(late.speedup if late else None, "{:.2f}x"),
        )
    return table


def _acceptance(overall: View) -> Table:
    table = _table("nodes of", "verified", "accepted", "rate", "accepted / expected")
    rows: list[tuple[str, AcceptanceRow]] = [(f"depth {row.what}", row) for row in overall.depths]
    rows += [(row.what, row) for row in overall.sources]
    for name, row in rows:
        table.add_row(
            name,
            f"{row.verified:.0f}",
            f"{row.accepted:.0f}",
            _number(row.rate, "{:.0%}"),
            _number(row.calibration, "{:.2f}"),
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _number(value: float | None, text: str) -> str:
    return _NOTHING if value is None else text.format(value)
