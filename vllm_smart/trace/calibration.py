"""How far the probabilities of recorded candidates can be trusted."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vllm_smart.errors import TraceError
from vllm_smart.kernels.evidence import BOTH, GRAMMAR, MODEL, NGRAM
from vllm_smart.profiling.plot import new_figure, save_figure
from vllm_smart.trace.reader import Trace
from vllm_smart.trace.regrow import products
from vllm_smart.trace.verdicts import ACCEPTED, UNKNOWN, continuations, verdicts

NUM_BINS = 10
_SOURCES = {MODEL: "model", NGRAM: "ngram", BOTH: "both", GRAMMAR: "grammar"}


@dataclass(frozen=True)
class Reliability:
    """Predicted and actual acceptance of paths, in bins of equal width from 0 to 1."""

    count: npt.NDArray[np.int64]  # [NUM_BINS] candidates
    predicted: npt.NDArray[np.float64]  # [NUM_BINS] their mean probability, NaN where there are none
    accepted: npt.NDArray[np.float64]  # [NUM_BINS] share of them that was accepted, or NaN

    @classmethod
    def of(cls, prob: npt.NDArray[np.float32], accepted: npt.NDArray[np.bool_]) -> "Reliability":
        """Args:
        prob: [num_candidates] in [0, 1].
        accepted: [num_candidates].
        """
        bins = np.minimum((prob * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        count = np.bincount(bins, minlength=NUM_BINS)
        with np.errstate(invalid="ignore"):
            return cls(
                count,
                np.bincount(bins, prob, NUM_BINS) / count,
                np.bincount(bins, accepted, NUM_BINS) / count,
            )

    @property
    def expected_error(self) -> float:
        """Expected calibration error (ECE): the mean gap over candidates, 0 at best."""
        gap = np.abs(self.predicted - self.accepted) * self.count
        return float(np.nansum(gap) / self.count.sum())


@dataclass(frozen=True)
class Calibration:
    """The same candidates before and after calibration."""

    before: Reliability  # products of what the draft says
    after: Reliability  # path_prob, which policies that weigh costs decide by
    # The same, of the candidates that each source has named; those of coupled requests apart.
    by_source: dict[str, Reliability]


def calibration(trace: Trace) -> Calibration:
    """Judge every recorded candidate whose verdict is known, verified or not.

    Raises:
        TraceError: there is none.
    """
    before, after, accepted, source, coupled = [], [], [], [], []
    for step, followed in zip(trace.steps, continuations(trace.steps), strict=True):
        for drafted in step.decision.requests:
            if drafted.request not in followed:
                continue
            verdict = verdicts(drafted, followed[drafted.request])
            known = (verdict != UNKNOWN) & (drafted.draft_prob > 0)
            known[0] = False  # the root
            before.append(products(drafted.parent, drafted.draft_prob)[known])
            after.append(drafted.path_prob[known])
            accepted.append(verdict[known] == ACCEPTED)
            source.append(drafted.source[known])
            coupled.append(np.full(np.count_nonzero(known), drafted.is_coupled))
    if not sum(map(len, accepted)):
        raise TraceError("the trace has no candidate whose verdict is known: nothing to calibrate.")
    truth, prob = np.concatenate(accepted), np.concatenate(after)
    named_by, is_coupled = np.concatenate(source), np.concatenate(coupled)
    by_source = {}
    for of_coupled in (False, True):
        for number in np.unique(named_by[is_coupled == of_coupled]).tolist():
            chosen = (named_by == number) & (is_coupled == of_coupled)
            name = _SOURCES.get(number, f"source {number}") + ", coupled" * of_coupled
            by_source[name] = Reliability.of(prob[chosen], truth[chosen])
    return Calibration(
        Reliability.of(np.concatenate(before), truth), Reliability.of(prob, truth), by_source
    )


def calibration_report(found: Calibration) -> Iterator[str]:
    """A table for people: expected calibration errors, in all and by source, then bins."""
    before, after = found.before, found.after
    yield (
        f"calibration of {before.count.sum()} paths: expected error {before.expected_error:.4f} as "
        f"drafted, {after.expected_error:.4f} calibrated"
    )
    for name, side in found.by_source.items():
        yield f"{name:>15}: expected error {side.expected_error:.4f} of {side.count.sum()} paths"
    yield f"{'':10} {'as drafted':^28} {'calibrated':^28}"
    yield f"{'bin':10} " + " ".join([f"{'paths':>8} {'expected':>9} {'accepted':>9}"] * 2)
    for index in range(NUM_BINS):
        cells = [
            f"{side.count[index]:8d} {side.predicted[index]:9.3f} {side.accepted[index]:9.3f}"
            for side in (before, after)
        ]
        line = f"{index / NUM_BINS:.1f} - {(index + 1) / NUM_BINS:.1f}  " + " ".join(cells)
        yield line.replace("nan", "  -")


def plot_calibration(found: Calibration, path: Path) -> None:
    """Draw a reliability diagram as a PNG.

    Raises:
        SmartError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(width=6.0, height=6.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfect")
    for label, side, color in (
        ("as drafted", found.before, "tab:orange"),
        ("calibrated", found.after, "tab:blue"),
    ):
        filled = side.count > 0
        axes.plot(
            side.predicted[filled],
            side.accepted[filled],
            marker="o",
            color=color,
            label=f"{label}: expected error {side.expected_error:.4f}",
        )
    axes.set(
        title=f"Acceptance of {found.before.count.sum()} recorded paths",
        xlabel="predicted probability of acceptance (mean of bin)",
        ylabel="share accepted",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    save_figure(figure, path)
