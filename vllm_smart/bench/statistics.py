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


def ratio_of_medians(
    ours: Sequence[float], baseline: Sequence[float], rng: np.random.Generator
) -> Estimate:
    """How many times `baseline` `ours` is.

    Measurement i of one and measurement i of the other were made in the same round, on the same
    prompts, so rounds are drawn, not measurements: what is common to a round cancels.

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
    pair = np.array([ours, baseline], np.float64)  # [2, num_rounds]
    value = float(np.median(pair[0]) / np.median(pair[1]))
    if len(ours) == 1:
        return Estimate(value, np.full(NUM_DRAWS, np.nan))
    rounds = rng.integers(len(ours), size=(NUM_DRAWS, len(ours)))
    drawn = np.median(pair[:, rounds], axis=2)  # [2, NUM_DRAWS]
    return Estimate(value, drawn[0] / drawn[1])


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
