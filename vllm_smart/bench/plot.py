"""The plot of a comparison: speedup over plain decoding by batch size."""

from pathlib import Path

from vllm_smart.bench.analysis import Comparison
from vllm_smart.bench.statistics import Estimate
from vllm_smart.errors import ConfigError

_PROMINENT = ("#d62728", "#9467bd", "#e377c2")  # ours
_OTHERS = ("#1f77b4", "#2ca02c", "#ff7f0e", "#8c564b", "#17becf", "#bcbd22")


def plot_speedups(comparison: Comparison, path: Path) -> None:
    """Write a PNG: our policy in bold, fixed chains in grey, 90% intervals as bars.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("Plots need matplotlib: pip install 'vllm-smart[bench]'.") from error
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    bold, other = iter(_PROMINENT * len(comparison.labels)), iter(_OTHERS * len(comparison.labels))
    for label in comparison.labels:
        points = [
            (size, ratio)
            for size in comparison.batch_sizes
            if (ratio := comparison.ratio(label, comparison.plain, size)) is not None
        ]
        if label == comparison.plain or not points:
            continue
        is_ours, is_chain = label in comparison.ours, label in comparison.chains
        axes.errorbar(
            [size for size, _ in points],
            [ratio.value for _, ratio in points],
            # Bars of many chains would hide one another.
            yerr=None if is_chain else _bars([ratio for _, ratio in points]),
            label=label,
            color=next(bold) if is_ours else "0.5" if is_chain else next(other),
            linewidth=2.5 if is_ours else 1.0,
            linestyle=":" if is_chain else "-",
            marker=f"${label.rsplit('-', 1)[-1]}$" if is_chain else "o",
            markersize=6 if is_ours or is_chain else 3,
            markeredgewidth=0.3 if is_chain else 1.0,
            capsize=2,
            zorder=3 if is_ours else 2,
        )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(comparison.batch_sizes, [str(size) for size in comparison.batch_sizes])
    axes.set_xlabel("batch size")
    axes.set_ylabel("speedup over plain decoding")
    axes.set_title(f"{comparison.drafter}: decoding throughput, medians, 90% intervals")
    axes.grid(alpha=0.3)
    if axes.containers:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)


def _bars(ratios: list[Estimate]) -> list[list[float]]:
    """[2, num_points] lengths; 0 where a median of few rounds has no interval or lies outside it."""
    below = [max(0.0, ratio.value - ratio.low) for ratio in ratios]
    return [below, [max(0.0, ratio.high - ratio.value) for ratio in ratios]]
