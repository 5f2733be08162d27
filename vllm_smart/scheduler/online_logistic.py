"""Many small logistic regressions of one variable, fitted online and pooled partially."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.kernels.acceptance.cpu import SMALLEST_PROB, level_acceptance

_Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]
_Index = npt.NDArray[np.intp]

_IDENTITY = np.array([[0.0], [1.0]])
_LOWEST = np.array([[-8.0], [0.0]])  # a likelier draft is never less likely to be accepted
_HIGHEST = np.array([[8.0], [4.0]])
_MAX_STEP = 1.0  # per update and coefficient, against overshooting on the first data
# Information of one observation about (a, b): a coin's variance, and that times the variance of
# logit(prob) as drafters spread it.
_PER_OBSERVATION = np.array([[0.25], [1.0]])


class OnlineLogistic:
    """Rows of sigmoid(a + b * logit(prob)), each with a Gaussian prior around another row or (0, 1).

    An update is one Newton step on the log posterior, in which all that was seen before counts as
    a Gaussian around the present coefficients, forgotten at a rate of 1 / window per observation
    (an extended Kalman filter with forgetting).
    """

    def __init__(self, prior_row: _Index, prior_weight: float, window: int) -> None:
        """Args:
        prior_row: [num_rows] the row that each row's prior is centred on; -1 for the identity
            (0, 1), which leaves probabilities as they are.
        prior_weight: observations that a prior is worth, > 0.
        window: observations remembered per row, > 1.
        """
        self.coefficients = np.repeat(_IDENTITY, len(prior_row), axis=1)  # [2, num_rows] a, b
        self._prior_row = prior_row
        self._prior = prior_weight * _PER_OBSERVATION
        self._keep = 1.0 - 1.0 / window
        self._information = np.zeros((3, len(prior_row)))  # of what was seen: aa, bb, ab
        self._centre = self.coefficients  # [2, num_rows] of the priors, at the last update
        self._float32 = self.coefficients.astype(np.float32)

    def learnt(self) -> dict[str, _Doubles]:
        """The state, as 2-D arrays by name."""
        return {
            "coefficients": self.coefficients,
            "information": self._information,
            "centre": self._centre,
        }

    def relearn(self, learnt: Mapping[str, _Doubles]) -> None:
        """Go on from a state of this shape."""
        self.coefficients = learnt["coefficients"].clip(_LOWEST, _HIGHEST)
        self._information, self._centre = learnt["information"], learnt["centre"]
        self._float32 = self.coefficients.astype(np.float32)

    def merged(self, states: Sequence[Mapping[str, _Doubles]]) -> dict[str, _Doubles]:
        """What a regression would know that had seen what each of `states` has, as from `learnt`.

        Each state is a Gaussian, so information adds up, and so does what it says about coefficients
        beyond the prior, which all share. More than a window's worth is not remembered.
        """
        information = np.zeros_like(self._information)
        said = np.zeros_like(self.coefficients)  # information * coefficients, without the priors'
        for state in states:
            seen, coefficients = state["information"], state["coefficients"]
            diagonal = seen[:2] + self._prior
            said += diagonal * coefficients + seen[2] * coefficients[::-1]
            said -= self._prior * state["centre"]
            information += seen
        most = _PER_OBSERVATION[0] / (1.0 - self._keep)
        kept = np.minimum(1.0, most / np.maximum(information[0], most))
        information, said = information * kept, said * kept
        diagonal = information[:2] + self._prior
        determinant = diagonal.prod(axis=0) - information[2] ** 2
        before, coefficients = None, np.repeat(_IDENTITY, len(self._prior_row), axis=1)
        while before is None or not np.array_equal(before, coefficients):  # general rows come first
            before = coefficients
            centre = np.where(self._prior_row < 0, _IDENTITY, before[:, self._prior_row])
            pull = said + self._prior * centre
            solved = (diagonal[::-1] * pull - information[2] * pull[::-1]) / determinant
            coefficients = solved.clip(_LOWEST, _HIGHEST)
        return {"coefficients": coefficients, "information": information, "centre": centre}

    def predict(self, row: _Index, prob: _Floats, offset: _Floats | float = 0.0) -> _Floats:
        """Probabilities float32 of the shape of `prob`; `row` and `offset` broadcast with it.

        Args:
            row: which regression each is of.
            prob: in [0, 1].
            offset: added to the intercept.
        """
        intercept, slope = self._float32
        predicted: _Floats = _sigmoid(intercept[row] + offset + slope[row] * _logit(prob))
        return predicted

    def predict_level(self, first: _Index, row: _Index, prob: _Floats, offset: _Floats) -> _Floats:
        """What siblings come to, each predicted by its share; see `level_acceptance`.

        Args:
            first: [num_rows] from where on each row's regressions are counted.
            row: [columns] which regression each sibling is of, counted from there.
            prob: [num_rows, columns] of the draft.
            offset: [num_rows] added to the intercepts.
        """
        level: _Floats = level_acceptance(prob, first, row, offset, *self._float32, SMALLEST_PROB)
        return level

    def of_rows(self, row: _Index) -> tuple[_Floats, _Floats]:
        """Intercepts and slopes of `row`, of its shape, as `predict` takes them."""
        intercept, slope = self._float32
        return intercept[row], slope[row]

    def update(self, row: _Index, prob: _Floats, outcome: npt.NDArray[np.bool_]) -> None:
        """Learn from [num_observations] outcomes."""
        num_rows = self.coefficients.shape[1]

        def per_row(values: _Doubles) -> _Doubles:
            return np.bincount(row, values, num_rows).astype(np.float64, copy=False)

        x = _logit(prob).astype(np.float64)
        intercept, slope = self.coefficients
        p = _sigmoid(intercept[row] + slope[row] * x)
        error, weight = outcome - p, p * (1.0 - p)
        kept = self._keep ** np.bincount(row, minlength=num_rows)
        self._information *= kept
        self._information += (per_row(weight), per_row(weight * x * x), per_row(weight * x))
        # What was forgotten no longer holds the coefficients against their priors.
        pull = (1.0 - kept) * (self._centre - self.coefficients)
        self._step(np.array((per_row(error), per_row(error * x))) + self._prior * pull)
        # Some rows' priors have moved with the rows that they are centred on.
        centre = np.where(self._prior_row < 0, _IDENTITY, self.coefficients[:, self._prior_row])
        self._step(self._prior * (centre - self._centre))
        self._centre = centre

    def _step(self, gradient: _Doubles) -> None:
        """Move all coefficients by information^-1 * gradient [2, num_rows], within bounds."""
        diagonal = self._information[:2] + self._prior
        off_diagonal = self._information[2]
        determinant = diagonal.prod(axis=0) - off_diagonal**2
        step = (diagonal[::-1] * gradient - off_diagonal * gradient[::-1]) / determinant
        moved = self.coefficients + step.clip(-_MAX_STEP, _MAX_STEP)
        self.coefficients = moved.clip(_LOWEST, _HIGHEST)
        self._float32 = self.coefficients.astype(np.float32)


def _logit(prob: _Floats) -> _Floats:
    clipped = np.fmin(np.fmax(prob, SMALLEST_PROB), 1 - SMALLEST_PROB)  # NaN, too, is no likelihood
    logit: _Floats = np.log(clipped / (1 - clipped))
    return logit


def _sigmoid(z: npt.NDArray[Any]) -> npt.NDArray[Any]:
    sigmoid: npt.NDArray[Any] = 1 / (1 + np.exp(-z))
    return sigmoid
