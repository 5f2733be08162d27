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


def median_ratio(ratios: Sequence[float], rng: np.random.Generator) -> Estimate:
    """The median over rounds of a ratio within each round.

    Both sides of it were measured on the same prompts, so what is common to a round (prompts that
    draft well, a machine that has slowed down) cancels. Rounds are drawn, not measurements.

    Args:
        ratios: [num_rounds], each > 0.
        rng: where the draws come from.

    Returns:
        The ratio; without an interval if there is only one round.

    Raises:
        ValueError: there are no rounds.
    """
    if not ratios:
        raise ValueError("Of no rounds there is no median.")
    of_round = np.array(ratios, np.float64)
    value = float(np.median(of_round))
    if len(of_round) == 1:
        return Estimate(value, np.full(NUM_DRAWS, np.nan))
    rounds = rng.integers(len(of_round), size=(NUM_DRAWS, len(of_round)))
    return Estimate(value, np.median(of_round[rounds], axis=1))


def percentile_ratio(
    ours: Sequence[float], theirs: Sequence[float], percent: float, rng: np.random.Generator
) -> Estimate:
    """A percentile of one arm's requests over that of another's, which were the same requests.

    Args:
        ours, theirs: [num_requests] > 0 each, in the same order.
        percent: in [0, 100].
        rng: draws requests.

    Raises:
        ValueError: there are none.
    """
    pairs = np.array((ours, theirs), np.float64)
    if not pairs.size:
        raise ValueError("No request has no percentile.")
    top, bottom = np.percentile(pairs, percent, axis=1)
    drawn = pairs[:, rng.integers(pairs.shape[1], size=(NUM_DRAWS, pairs.shape[1]))]
    tops, bottoms = np.percentile(drawn, percent, axis=2)
    return Estimate(float(top / bottom), tops / bottoms)


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
