"""Costs that learn from the times of real steps.

A table is measured once, on an idle engine; machines slow down, steps do more than forwards, and
some sizes were timed at a bad moment. A linear model of what was measured against what the table
says - factors by size, and milliseconds per step - is fitted online, starting from the table.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vllm_smart.profiling.corrected_cost import CorrectedCost, Correction
from vllm_smart.profiling.cost_table import Context, CostTable
from vllm_smart.profiling.regression import add_observation, dot, features

_Floats = npt.NDArray[np.float64]

# What a coefficient is believed to be before any step: (mean, standard deviation).
_MACHINE = 0.5  # how far the machine may be from what it was, in all factors alike; and each alone:
_SIZE, _DRAFT, _CONTEXT = 0.15, 0.3, 0.5
_REACH = 2.0  # doublings of the size over which a size's own error is shared; but for
_POINT = 0.04  # what each was mismeasured by alone
_MILLISECONDS = (
    (1.0, 2.0),  # of a step: scheduler, sampling, detokenisation
    (0.02, 0.05),  # per request
    (1.0, 1.0),  # of drafting: choosing, bookkeeping
    (0.02, 0.05),
    (0.3, 0.5),  # of branching: masks, compaction
    (0.02, 0.05),
)
# Plain steps, drafting ones, and those where one follows the other are remembered apart: which of them
# is faster is what there is to know, and while one pays there are few of the other.
_NUM_KINDS = 3
_WINDOW = 128  # steps of a kind remembered
_OTHERS_WINDOW = 512  # steps of other kinds until one is forgotten: machines drift
_KEPT = 1.0 - 1.0 / np.where(np.eye(_NUM_KINDS, dtype=bool), _WINDOW, _OTHERS_WINDOW)
_ALIKE = 0.8  # correlation of the machine's speed in two steps
_MOST_SWING = 0.5  # that one step says of the next
_NOISE = 0.05  # of a step's time, relative, as believed
_LEAST_NOISE, _MOST_NOISE = 0.01, 0.3  # as observed, which tells outliers
_NOISE_RATE = 0.03  # how fast it is learnt
_OUTLIER = 3.0  # standard deviations from which on a step counts less and less
_REFRESH_EVERY = 8  # steps between two uses of what was learnt
_EVERY_STEP_UNTIL = 16  # steps, at first


class StepShape(NamedTuple):
    """What one step consisted of."""

    num_tokens: int  # rows of the target's forward
    context: Context
    num_requests: int
    branches: bool  # some tree was not a chain
    read_rows: int = 0  # by the drafter; 0 = it did not run
    candidate_rows: int = 0  # requests that draft
    level_rows: Sequence[int] = ()  # of further draft levels


class _Seen(NamedTuple):
    """A step as the learner saw it; all relative to what was predicted."""

    drafts: bool
    surprise: float  # measured over predicted, less 1
    x: _Floats  # features
    residual: float  # from what the prior says


class CostLearner:
    """Corrects a table by the times of steps; `cost` is always the latest word."""

    def __init__(self, table: CostTable, learns: bool = True) -> None:
        """Args:
        table: measured costs.
        learns: False keeps to the table: with several ranks each would learn something else and
            grow other trees.
        """
        self.cost = CorrectedCost(table)
        self._learns = learns
        self._sizes = table.verify_curve.counts
        num_sizes = len(self._sizes)
        num_factors = num_sizes + 2
        num_features = num_factors + len(_MILLISECONDS)
        covariance = np.diag([_POINT**2] * num_sizes + [_DRAFT**2, _CONTEXT**2]) + _MACHINE**2
        logs = np.log2(np.maximum(self._sizes, 1))
        distance = np.abs(logs[:, None] - logs)
        covariance[:num_sizes, :num_sizes] += _SIZE**2 * np.exp(-distance / _REACH)
        milliseconds = np.array(_MILLISECONDS)
        self._mean = np.concatenate((np.ones(num_factors), milliseconds[:, 0]))
        self._prior = np.zeros((num_features, num_features))
        self._prior[:num_factors, :num_factors] = np.linalg.inv(covariance)
        self._prior[num_factors:, num_factors:] = np.diag(milliseconds[:, 1] ** -2)
        # What was seen by kind of steps, as weighted least squares of deviations from the prior mean.
        self._information = np.zeros((_NUM_KINDS, num_features, num_features))
        self._evidence = np.zeros((_NUM_KINDS, num_features))
        self._before = _Seen(False, 0.0, np.zeros(num_features), 0.0)
        self._coefficients = self._mean.copy()
        self._noise = _NOISE
        self._num_steps = 0
        if learns:
            self._correct()
        else:
            self._coefficients[num_factors:] = 0.0

    def predict(self, shape: StepShape) -> float:
        """Milliseconds of a step, on a machine that is as fast as it has been for long."""
        return float(dot(self._features(shape), self._coefficients))

    def observe(self, shape: StepShape, measured_ms: float) -> float:
        """Learn from a step that took `measured_ms`, from its begin to the begin of the next.

        Returns:
            What was predicted for it, on a machine about as fast as in the step before. (That is one
            factor for whatever might be run, and so nothing to decide by.)
        """
        x = self._features(shape)
        predicted = float(dot(x, self._coefficients))
        swing = max(-_MOST_SWING, min(_ALIKE * self._before.surprise, _MOST_SWING))
        if self._learns:
            self._learn(x, shape.read_rows > 0, predicted, measured_ms)
        return predicted * (1.0 + swing)

    def _learn(self, x: _Floats, drafts: bool, predicted: float, measured_ms: float) -> None:
        believed = max(predicted, 1e-3)
        x = x / believed
        ratio = measured_ms / believed
        now, before = _Seen(drafts, ratio - 1.0, x, ratio - dot(x, self._mean)), self._before
        # A machine is fast or slow for a while, which says nothing about sizes. So a step is compared
        # with the one before it, as far as the two are alike in that.
        z = (now.surprise - _ALIKE * before.surprise) / self._noise
        # Pauses, and other work on the machine, are no news about the engine.
        usual = 1.0 / (1.0 + (z / _OUTLIER) ** 2)
        squared = min(abs(z), _OUTLIER * 2) ** 2 * self._noise**2
        noise = math.sqrt(self._noise**2 + _NOISE_RATE * (squared - self._noise**2))
        self._noise = min(max(noise, _LEAST_NOISE), _MOST_NOISE)
        kind = int(now.drafts) + int(before.drafts)
        add_observation(
            self._information,
            self._evidence,
            _KEPT[kind],
            kind,
            now.x - _ALIKE * before.x,
            now.residual - _ALIKE * before.residual,
            usual / _NOISE**2,
        )
        self._before = now
        self._num_steps += 1
        if self._num_steps < _EVERY_STEP_UNTIL or self._num_steps % _REFRESH_EVERY == 0:
            self._coefficients = self._mean + np.linalg.solve(
                self._prior + self._information.sum(axis=0), self._evidence.sum(axis=0)
            )
            self._correct()

    def _correct(self) -> None:
        by, num_sizes = self._coefficients.tolist(), len(self._sizes)
        self.cost.correct(Correction(tuple(by[:num_sizes]), *by[num_sizes:]))

    def _features(self, shape: StepShape) -> _Floats:
        """What each coefficient is multiplied with."""
        table, drafting_ms = self.cost.table, 0.0
        if shape.read_rows:
            drafting_ms = table.read_ms(shape.read_rows, shape.candidate_rows)
            drafting_ms += sum(map(table.draft_ms, shape.level_rows))
        fixed_ms, row_ms = table.context_ms(shape.context)
        x: _Floats = features(
            self._sizes,
            shape.num_tokens,
            table.verify_ms(shape.num_tokens),
            drafting_ms,
            fixed_ms + row_ms * shape.num_tokens,
            shape.num_requests,
            shape.candidate_rows,
            shape.branches,
        )
        return x
