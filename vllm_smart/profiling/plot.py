"""A cost table as a picture, and what the rule makes of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vllm_smart.errors import SmartError
from vllm_smart.profiling.cost_table import CostTable
from vllm_smart.profiling.curve import CostCurve
from vllm_smart.profiling.key import TableKey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class BatchChoice(Protocol):
    """What the rule picks for a batch size, as `vllm_smart.scheduler.Explanation` has it."""

    @property
    def batch_size(self) -> int:
        """Requests."""

    @property
    def num_draft_tokens(self) -> float:
        """Draft nodes per request."""

    @property
    def speedup(self) -> float:
        """Expected, over plain decoding."""


def plot_costs(table: CostTable, key: TableKey, choices: Sequence[BatchChoice], path: Path) -> None:
    """Draw a table's curves and its choices by batch size as a PNG.

    Args:
        table: to draw.
        key: what it was measured for.
        choices: by batch size, at least one.
        path: the file to write.

    Raises:
        SmartError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(width=12.0, height=5.0)
    figure.suptitle(
        f"{_short(key.target)} with drafter {_short(key.drafter)}\n{key.dtype}, on {key.device}"
    )
    costs, choice = figure.subplots(1, 2)
    _draw_costs(costs, table)
    _draw_choices(choice, choices)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches.

    Raises:
        SmartError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SmartError(
            "Pictures need matplotlib, which is not installed: pip install 'vllm-smart[bench]'."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write `figure` as a PNG, whatever the file is called.

    Raises:
        SmartError: the file cannot be written.
    """
    try:
        figure.savefig(path.expanduser(), format="png", dpi=120)
    except OSError as error:
        raise SmartError(f"picture {path} cannot be written ({error.strerror}).") from error


def _short(name: str) -> str:
    """A hub id as it is, of a folder its last two parts."""
    return "/".join(name.rstrip("/").split("/")[-2:])


def _draw_costs(axes: "Axes", table: CostTable) -> None:
    samples = table.samples
    for label, points, color in (
        ("target step", samples.verify, "tab:blue"),
        ("draft level", samples.draft, "tab:orange"),
        ("drafter reading", samples.read, "tab:green"),
    ):
        if not points:
            continue
        sizes, ms = zip(*sorted(points), strict=True)
        every = np.arange(sizes[0], sizes[-1] + 1)
        curve = CostCurve(points).at_each(every)
        axes.plot(every, curve, color=color, label=label)
        axes.plot(sizes, ms, "o", color=color, markersize=4)
    axes.set(
        title="Costs: measured (points), and the curves used",
        xlabel="tokens (rows of one forward)",
        ylabel="milliseconds",
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_choices(axes: "Axes", choices: Sequence[BatchChoice]) -> None:
    sizes = [str(choice.batch_size) for choice in choices]
    nodes = axes.bar(
        sizes, [choice.num_draft_tokens for choice in choices], color="tab:blue", alpha=0.35
    )
    axes.bar_label(nodes, fmt="%.1f", padding=2, color="tab:blue", fontsize=8)
    axes.set(
        title="What the rule picks, for a middling drafter",
        xlabel="batch size (requests)",
        ylabel="draft nodes per request",
    )
    axes.margins(y=0.15)
    axes.yaxis.label.set_color("tab:blue")
    right = axes.twinx()
    right.plot(sizes, [choice.speedup for choice in choices], "o-", color="tab:red")
    right.axhline(1.0, color="tab:red", linestyle=":", linewidth=1)
    right.set_ylabel("expected speedup over plain decoding", color="tab:red")
    right.set_ylim(bottom=0)
    right.margins(y=0.15)
