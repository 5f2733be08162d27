"""Points for people: a table, and curves over the rate."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from vllm_smart.errors import ConfigError
from vllm_smart.profiling.plot import new_figure, save_figure
from vllm_smart.simulate.runs import Percentiles, Point


def as_table(points: Sequence[Point]) -> Table:
    """One row per policy and load; milliseconds are 50th / 90th / 99th percentiles."""
    table = Table(title="simulated; ms: p50 / p90 / p99")
    for column in ("load", "policy"):
        table.add_column(column)
    for column in ("tokens/s", "TTFT ms", "TPOT ms", "ITL ms", "rows", "length", "drafts", "preempted"):
        table.add_column(column, justify="right")
    previous = ""
    for point in points:
        if previous and point.load != previous:
            table.add_section()
        previous = point.load
        table.add_row(
            point.load,
            point.policy,
            f"{point.tokens_per_s:,.1f}",
            *map(_percentiles, (point.ttft_ms, point.tpot_ms, point.itl_ms)),
            f"{point.mean_rows:.1f}",
            f"{point.acceptance_length:.2f}",
            f"{point.drafting_share:.0%}",
            str(point.num_preemptions),
        )
    return table


def _percentiles(of: Percentiles) -> str:
    digits = 0 if of.p50 >= 100 else 1
    return " / ".join(f"{value:,.{digits}f}" for value in (of.p50, of.p90, of.p99))


def plot_points(points: Sequence[Point], path: Path) -> None:
    """Draw what policies do over the rate as a PNG.

    Raises:
        ConfigError: there is no rate to draw over.
        SmartError: matplotlib is not installed, or the file cannot be written.
    """
    drawn = [point for point in points if point.rate is not None]
    if not drawn:
        raise ConfigError("--plot: there is no rate to draw over. Pass --rate, best several times.")
    figure = new_figure(width=12.0, height=8.0)
    axes = figure.subplots(2, 2).reshape(-1)
    titles = ("tokens per second", "time to the first token, ms", "time per token, ms", "ITL, ms")
    for index, policy in enumerate(dict.fromkeys(point.policy for point in drawn)):
        of_policy = sorted(
            (point for point in drawn if point.policy == policy), key=lambda point: point.rate or 0.0
        )
        rates = [point.rate for point in of_policy]
        color = f"C{index}"
        tokens = [point.tokens_per_s for point in of_policy]
        axes[0].plot(rates, tokens, "o-", color=color, label=policy)
        for axis, name in zip(axes[1:], ("ttft_ms", "tpot_ms", "itl_ms"), strict=True):
            found = [getattr(point, name) for point in of_policy]
            axis.plot(rates, [each.p50 for each in found], "o-", color=color, label=policy)
            axis.plot(rates, [each.p90 for each in found], "--", color=color, linewidth=1)
            axis.plot(rates, [each.p99 for each in found], ":", color=color, linewidth=1)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="requests per second")
        axis.grid(alpha=0.3)
    for axis in axes[1:]:
        axis.set_title(
            f"{axis.get_title()}: median, 90th (dashed), 99th percentile (dotted)", fontsize=9
        )
    for axis in (axes[0], *axes[2:]):
        axis.set_ylim(bottom=0)
    axes[1].set_yscale("log")  # beyond saturation it grows with the length of the run
    axes[0].legend()
    figure.suptitle("Simulated")
    save_figure(figure, path)
