"""What a step costs beyond what the cost table knows, learnt while serving."""

from collections import deque
from statistics import median

_REMEMBERED = 33  # steps; an odd number has a median that was measured


class StepOverhead:
    """The engine's loop, sampling and our own machinery: measured less predicted step time.

    A step lasts until the next one begins. The median over recent steps ignores pauses and
    prefills that nobody could predict.
    """

    def __init__(self, world_size: int) -> None:
        """Args:
        world_size: with several ranks, each would measure something else and grow other trees,
            so there the overhead stays at what the table says.
        """
        self.ms = 0.0
        self._learns = world_size == 1
        self._unexplained: deque[float] = deque(maxlen=_REMEMBERED)
        self._begin_s = 0.0
        self._predicted_ms = 0.0

    def expect(self, predicted_ms: float) -> None:
        """The next step is predicted to take so long, this overhead included; 0 = not predicted."""
        self._predicted_ms = predicted_ms

    def step_begins(self, now_s: float) -> tuple[float, float] | None:
        """A step begins, which ends the one before.

        Returns:
            Predicted and measured milliseconds of the step that has ended, where it was predicted.
        """
        measured_ms, predicted_ms = (now_s - self._begin_s) * 1e3, self._predicted_ms
        self._begin_s, self._predicted_ms = now_s, 0.0
        if predicted_ms == 0.0:
            return None
        self._unexplained.append(measured_ms - (predicted_ms - self.ms))
        if self._learns:
            self.ms = max(0.0, median(self._unexplained))
        return predicted_ms, measured_ms
