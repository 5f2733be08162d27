"""Views as a person sees them in a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table

from vllm_smart.top import words
from vllm_smart.top.scrape import Engine
from vllm_smart.top.view import View


def render(engine: Engine, now: View, overall: View) -> RenderableType:
    """One engine: of late, and since its server started.

    Args:
        now: of the time since the last look.
        overall: since the server started.
    """
    return Group(
        f"[bold]{engine}[/bold]\n[dim]{words.about(overall)}[/dim]",
        _table(words.summary(now, overall)),
        words.why(now),
        _table(words.batches(now, overall)),
        _table(words.acceptance(overall)),
        "",
    )


def _table(cells: words.Cells) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, name in enumerate(cells.head):
        table.add_column(name, justify="right" if column else "left")
    for row in cells.rows:
        table.add_row(*row)
    return table
