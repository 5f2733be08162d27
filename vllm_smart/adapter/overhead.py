"""What a step costs beyond what the cost table knows, learnt while serving."""

from collections import defaultdict, deque
from statistics import median

from vllm_smart.scheduler import Overheads

_REMEMBERED = 33  # steps; an odd number has a median that was measured
_LEAST = 3  # steps before their median means something: the first may have compiled a kernel
_STALE = 1024  # steps after which what was seen last says nothing about now


class StepOverhead:
    """The engine's loop, sampling and our own machinery: measured less predicted step time.

    A step lasts until the next one begins. Plain steps and steps with trees are kept apart, and
    batch sizes by powers of two. The median over recent steps ignores pauses. It is negative where
    the table was measured at a slow moment.
    """

    def __init__(self, world_size: int) -> None:
        """Args:
        world_size: with several ranks, each would measure something else and grow other trees,
            so there nothing is learnt.
        """
        self._learns = world_size == 1
        # (draws trees, bit length of the batch size) -> unexplained milliseconds of recent steps
        self._unexplained: defaultdict[tuple[bool, int], deque[float]] = defaultdict(
            lambda: deque(maxlen=_REMEMBERED)
        )
        self._latest: dict[tuple[bool, int], int] = {}  # number of the last step of each
        self._num_steps = 0
        self._counts = False
        self._begin_s = 0.0
        self._verify_ms = 0.0
        self._spent_ms: float | None = None
        self._num_requests = 0
        self._verified_trees = False
        self._drafted = False

    def at(self, num_requests: int) -> Overheads:
        """What is known for batches of about this size; what is long past is not."""
        size = num_requests.bit_length()
        return Overheads(plain=self._recent(False, size), tree=self._recent(True, size))

    def of_trees(self, num_requests: int) -> float:
        """Milliseconds beyond the forwards of a step with trees; 0 while nothing is known."""
        return self._nearest(True, num_requests.bit_length()) or 0.0

    def _recent(self, trees: bool, size: int) -> float | None:
        values = self._unexplained.get((trees, size), ())
        if len(values) < _LEAST or self._num_steps - self._latest[trees, size] > _STALE:
            return None
        return median(values)

    def _nearest(self, trees: bool, size: int) -> float | None:
        known = [
            (abs(other - size), values)
            for (kind, other), values in self._unexplained.items()
            if kind is trees and len(values) >= _LEAST
        ]
        return median(min(known, key=lambda pair: pair[0])[1]) if known else None

    def step_begins(
        self,
        now_s: float,
        verify_ms: float,
        num_requests: int,
        verifies_trees: bool,
        has_prefill: bool = False,
    ) -> tuple[float, float] | None:
        """A step begins, which ends the one before.

        Args:
            now_s: the time.
            verify_ms: predicted time of the step's target forward.
            num_requests: of the step.
            verifies_trees: whether any request has draft nodes.
            has_prefill: whether any request is not decoding yet; such steps teach nothing.

        Returns:
            Predicted and measured milliseconds of the step that has ended, where it was predicted.
        """
        result = None
        if self._spent_ms is not None:
            result = self._close((now_s - self._begin_s) * 1e3, self._verify_ms + self._spent_ms)
        self._begin_s, self._verify_ms, self._spent_ms = now_s, verify_ms, None
        self._num_requests, self._verified_trees = num_requests, verifies_trees
        self._counts = not has_prefill
        self._num_steps += 1
        return result

    def _close(self, measured_ms: float, forwards_ms: float) -> tuple[float, float]:
        size = self._num_requests.bit_length()
        known = self._nearest(self._drafted, size) or 0.0
        # A step between drafting and not drafting is neither kind.
        if self._learns and self._counts and self._drafted == self._verified_trees:
            unexplained = max(measured_ms - forwards_ms, -forwards_ms / 2)
            self._unexplained[self._drafted, size].append(unexplained)
            self._latest[self._drafted, size] = self._num_steps
        return forwards_ms + known, measured_ms

    def step_drafted(self, spent_ms: float, drafted: bool) -> None:
        """The present step's drafting, for the next one, is predicted to take `spent_ms`."""
        self._spent_ms, self._drafted = spent_ms, drafted
