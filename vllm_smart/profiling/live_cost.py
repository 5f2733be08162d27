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

from vllm_smart.profiling.corrected_cost import NUM_SIZES, CorrectedCost, Correction
from vllm_smart.profiling.cost_table import Context, CostTable
from vllm_smart.profiling.regression import add_observation, dot, features

_Floats = npt.NDArray[np.float64]

# What a coefficient is believed to be before any step: (mean, standard deviation).
_MACHINE = 0.5  # how far the machine may be from what it was, in all factors alike; and each alone:
_SIZE, _DRAFT, _CONTEXT = 0.15, 0.3, 0.5
_REACH = 2.0  # sizes, each twice the one before, over which a size's own error is shared
_MILLISECONDS = (
    (1.0, 2.0),  # of a step: scheduler, sampling, detokenisation
    (0.02, 0.05),  # per request
    (1.0, 1.0),  # of drafting: choosing, bookkeeping
    (0.02, 0.05),
    (0.3, 0.5),  # of branching: masks, compaction
    (0.02, 0.05),
)
_NUM_FACTORS = NUM_SIZES + 2
_NUM_FEATURES = _NUM_FACTORS + len(_MILLISECONDS)
_LOG_SIZES = np.arange(NUM_SIZES)
_WINDOW = 128  # steps remembered
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
    candidate_rows: int = 0
    level_rows: Sequence[int] = ()  # of further draft levels


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
        covariance = np.diag([0.0] * NUM_SIZES + [_DRAFT**2, _CONTEXT**2]) + _MACHINE**2
        distance = np.abs(_LOG_SIZES[:, None] - _LOG_SIZES)
        covariance[:NUM_SIZES, :NUM_SIZES] += _SIZE**2 * np.exp(-distance / _REACH)
        milliseconds = np.array(_MILLISECONDS)
        self._mean = np.concatenate((np.ones(_NUM_FACTORS), milliseconds[:, 0]))
        self._prior = np.zeros((_NUM_FEATURES, _NUM_FEATURES))
        self._prior[:_NUM_FACTORS, :_NUM_FACTORS] = np.linalg.inv(covariance)
        self._prior[_NUM_FACTORS:, _NUM_FACTORS:] = np.diag(milliseconds[:, 1] ** -2)
        # Of what was seen, as weighted least squares of deviations from the prior mean.
        self._information = np.zeros((_NUM_FEATURES, _NUM_FEATURES))
        self._evidence = np.zeros(_NUM_FEATURES)
        self._coefficients = self._mean.copy()
        self._noise = _NOISE
        self._num_steps = 0
        if learns:
            self._correct()
        else:
            self._coefficients[_NUM_FACTORS:] = 0.0

    def predict(self, shape: StepShape) -> float:
        """Milliseconds of a step."""
        return float(dot(_features(self.cost.table, shape), self._coefficients))

    def observe(self, shape: StepShape, measured_ms: float) -> float:
        """Learn from a step that took `measured_ms`, from its begin to the begin of the next.

        Returns:
            What was predicted for it.
        """
        x = _features(self.cost.table, shape)
        predicted = float(dot(x, self._coefficients))
        if self._learns:
            self._learn(x, predicted, measured_ms)
        return predicted

    def _learn(self, x: _Floats, predicted: float, measured_ms: float) -> None:
        believed = max(predicted, 1e-3)
        z = (measured_ms / believed - 1.0) / self._noise
        # Pauses, and other work on the machine, are no news about the engine.
        weight = 1.0 / (1.0 + (z / _OUTLIER) ** 2) / (_NOISE * believed) ** 2
        squared = min(abs(z), _OUTLIER * 2) ** 2 * self._noise**2
        noise = math.sqrt(self._noise**2 + _NOISE_RATE * (squared - self._noise**2))
        self._noise = min(max(noise, _LEAST_NOISE), _MOST_NOISE)
        residual = measured_ms - dot(x, self._mean)
        add_observation(self._information, self._evidence, x, residual, weight, 1.0 - 1.0 / _WINDOW)
        self._num_steps += 1
        if self._num_steps < _EVERY_STEP_UNTIL or self._num_steps % _REFRESH_EVERY == 0:
            self._coefficients = self._mean + np.linalg.solve(
                self._prior + self._information, self._evidence
            )
            self._correct()

    def _correct(self) -> None:
        by = self._coefficients.tolist()
        self.cost.correct(Correction(tuple(by[:NUM_SIZES]), *by[NUM_SIZES:]))


def _features(table: CostTable, shape: StepShape) -> _Floats:
    """What each coefficient is multiplied with."""
    drafts, drafting_ms = shape.read_rows > 0, 0.0
    if drafts:
        drafting_ms = table.read_ms(shape.read_rows, shape.candidate_rows)
        drafting_ms += sum(map(table.draft_ms, shape.level_rows))
    fixed_ms, row_ms = table.context_ms(shape.context)
    x: _Floats = features(
        NUM_SIZES,
        shape.num_tokens,
        table.verify_ms(shape.num_tokens),
        drafting_ms,
        fixed_ms + row_ms * shape.num_tokens,
        shape.num_requests,
        drafts,
        shape.branches,
    )
    return x
