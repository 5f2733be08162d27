"""Ratios of repeated measurements and how sure they are. Pure: knows numbers only."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

NUM_DRAWS = 2000
INTERVAL = (5.0, 95.0)  # percentiles: a 90% interval

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A ratio and the bootstrap distribution that says how far to trust it."""

    value: float
    draws: _Floats = field(repr=False)  # [NUM_DRAWS]; NaN where nothing can be said

    @property
    def low(self) -> float:
        """Lower end of the 90% interval; NaN where nothing can be said."""
        return float(np.percentile(self.draws, INTERVAL[0]))

    @property
    def high(self) -> float:
        """Upper end of the 90% interval; NaN where nothing can be said."""
        return float(np.percentile(self.draws, INTERVAL[1]))


def median_ratio(
    ours: Sequence[float], baseline: Sequence[float], rng: np.random.Generator
) -> Estimate:
    """How many times `baseline` `ours` is: the median over rounds of the ratio within a round.

    Measurement i of one and measurement i of the other were made in the same round, on the same
    prompts, so what is common to a round (prompts that draft well, a machine that has slowed down)
    cancels. Rounds are drawn, not measurements.

    Args:
        ours: [num_rounds], each > 0.
        baseline: [num_rounds], each > 0.
        rng: where the draws come from.

    Returns:
        The ratio; without an interval if there is only one round.

    Raises:
        ValueError: there are no rounds, or not as many of one as of the other.
    """
    if not ours or len(ours) != len(baseline):
        raise ValueError(f"{len(ours)} and {len(baseline)} measurements cannot be compared.")
    ratios = np.array(ours, np.float64) / np.array(baseline, np.float64)  # [num_rounds]
    value = float(np.median(ratios))
    if len(ratios) == 1:
        return Estimate(value, np.full(NUM_DRAWS, np.nan))
    rounds = rng.integers(len(ratios), size=(NUM_DRAWS, len(ratios)))
    return Estimate(value, np.median(ratios[rounds], axis=1))


def geometric_mean(estimates: Sequence[Estimate]) -> Estimate:
    """The geometric mean of independent ratios.

    Raises:
        ValueError: there is none.
    """
    if not estimates:
        raise ValueError("The geometric mean of nothing is not defined.")
    value = np.exp(np.mean(np.log([estimate.value for estimate in estimates])))
    draws = np.exp(np.mean(np.log([estimate.draws for estimate in estimates]), axis=0))
    return Estimate(float(value), draws)
