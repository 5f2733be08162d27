"""Times the engine's steps while it serves, and teaches the costs what they took."""

from collections.abc import Sequence
from typing import NamedTuple

from vllm_smart.profiling.live_cost import CostLearner, StepShape

# Plain steps in a row, of one size, that all teach; of the others, one in so many.
_ALIKE = 128
_TEACH_EVERY = 4


class StepTime(NamedTuple):
    """How long a step took."""

    # None where costs are unknown, it had a prefill, or it teaches nothing new.
    predicted_ms: float | None
    measured_ms: float
    shape: StepShape
    has_prefill: bool


class StepClock:
    """A step lasts until the next one begins."""

    def __init__(self, costs: CostLearner | None) -> None:
        """Args:
        costs: what predicts steps and learns from them; None where costs are unknown.
        """
        self._costs = costs
        self._begin_s = 0.0
        self._shape: StepShape | None = None
        self._has_prefill = False
        self._is_complete = False
        self._num_alike = 0

    def begins(
        self, now_s: float, shape: StepShape, has_prefill: bool, after_pause: bool
    ) -> StepTime | None:
        """A step begins, which ends the one before.

        Args:
            now_s: the time.
            shape: of the step, before anything is drafted in it.
            has_prefill: such a step teaches nothing; what it takes beyond rows varies.
            after_pause: the engine may have had nothing to do meanwhile.

        Returns:
            The time of the step that has ended; None if there is none whose end is known.
        """
        result = None if after_pause else self._close(now_s)
        is_alike = self._shape is not None and shape.num_tokens == self._shape.num_tokens
        self._num_alike = self._num_alike + 1 if is_alike else 0
        self._begin_s, self._shape = now_s, shape
        self._has_prefill, self._is_complete = has_prefill, False
        return result

    def pause(self, seconds: float) -> None:
        """The engine stood still for so long, on purpose, between two steps."""
        self._begin_s += seconds

    def drafted(self, read_rows: int, candidate_rows: int, level_rows: Sequence[int]) -> None:
        """What the drafter has run in the present step."""
        assert self._shape is not None
        self._shape = self._shape._replace(
            read_rows=read_rows,
            candidate_rows=candidate_rows,
            level_rows=tuple(level_rows),
        )
        self._is_complete = True
        self._num_alike = 0

    def rested(self) -> None:
        """The drafter does not run in the present step."""
        self._is_complete = True

    def _close(self, now_s: float) -> StepTime | None:
        if self._shape is None or not self._is_complete:
            return None
        measured_ms = (now_s - self._begin_s) * 1e3
        is_news = self._num_alike < _ALIKE or self._num_alike % _TEACH_EVERY == 0
        predicted_ms = None
        if self._costs is not None and not self._has_prefill and is_news:
            predicted_ms = self._costs.observe(self._shape, measured_ms)
        return StepTime(predicted_ms, measured_ms, self._shape, self._has_prefill)
