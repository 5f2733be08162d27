"""The plot of a comparison: speedup over plain decoding by batch size."""

from itertools import cycle
from pathlib import Path
from typing import Any

from vllm_smart.bench.analysis import Comparison
from vllm_smart.bench.statistics import Estimate
from vllm_smart.profiling.plot import new_figure, save_figure

_OURS = ("#d62728", "#9467bd", "#e377c2")
_OTHERS = ("#1f77b4", "#2ca02c", "#ff7f0e", "#8c564b", "#17becf", "#bcbd22")
_CHAIN_GREYS = ("0.75", "0.25")  # of the shortest chain, of the longest
_DODGE = 0.02  # in octaves of the batch size: arms side by side, so that bars do not hide one another


def plot_speedups(comparison: Comparison, path: Path) -> None:
    """Write a PNG: our policy in bold, fixed chains in grey, 90% intervals as bars.

    Ablations are left out: they lie on top of our policy, and have a table of their own.

    Raises:
        SmartError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(width=10.0, height=5.5)
    axes = figure.subplots()
    styles = _styles(comparison)
    middle = (len(styles) - 1) / 2
    for index, (label, style) in enumerate(styles.items()):
        points = [
            (size * 2 ** (_DODGE * (index - middle)), ratio)
            for size in comparison.batch_sizes
            if (ratio := comparison.ratio(label, comparison.plain, size)) is not None
        ]
        if points:
            axes.errorbar(
                [x for x, _ in points],
                [ratio.value for _, ratio in points],
                # Bars of many chains would hide one another.
                yerr=None if label in comparison.chains else _bars([ratio for _, ratio in points]),
                label=label,
                **style,
            )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(comparison.batch_sizes, [str(size) for size in comparison.batch_sizes])
    axes.set_xlim(min(comparison.batch_sizes) / 1.4, max(comparison.batch_sizes) * 1.4)
    axes.minorticks_off()
    axes.set_xlabel("batch size (requests)")
    axes.set_ylabel("speedup over plain decoding")
    axes.set_title(
        f"{comparison.drafter}, {comparison.workload}: decoding throughput, medians, 90% intervals"
    )
    axes.grid(alpha=0.3)
    if axes.containers:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path)


def _styles(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """How each arm is drawn, by its label; chains by their K, the longer the darker."""
    bold, other = cycle(_OURS), cycle(_OTHERS)
    styles: dict[str, dict[str, Any]] = {}
    for label in comparison.labels:
        if label == comparison.plain or label in comparison.ablations:
            continue
        if label in comparison.chains:
            rank, last = comparison.chains.index(label), max(len(comparison.chains) - 1, 1)
            light, dark = map(float, _CHAIN_GREYS)
            styles[label] = {
                "color": str(light + (dark - light) * rank / last),
                "marker": f"${label.rsplit('-', 1)[-1]}$",
                "linestyle": ":",
                "linewidth": 1.0,
                "markersize": 6,
            }
        else:
            is_ours = label in comparison.ours
            styles[label] = {
                "color": next(bold) if is_ours else next(other),
                "marker": "o",
                "linewidth": 2.5 if is_ours else 1.2,
                "markersize": 6 if is_ours else 3,
                "capsize": 2,
                "zorder": 4 if is_ours else 3,
            }
    return styles


def _bars(ratios: list[Estimate]) -> list[list[float]]:
    """[2, num_points] lengths; 0 where a median of few rounds has no interval or lies outside it."""
    below = [max(0.0, ratio.value - ratio.low) for ratio in ratios]
    return [below, [max(0.0, ratio.high - ratio.value) for ratio in ratios]]
