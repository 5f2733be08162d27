"""A step whose outcome is on its way to the host while the host goes on."""

from collections.abc import Callable

from vllm.utils.gpu_sync_debug import gpu_sync_allowed

_Part = Callable[[], None]


class LateStep:
    """What no one has waited for, of the latest step: that it has ended, and what it teaches.

    Apart, because the next step cannot be planned without its trees, while learning from it can wait
    until the device has the next step's forward to do.
    """

    def __init__(self) -> None:
        self._arrives: _Part | None = None
        self._teaches: _Part | None = None

    def put(self, arrives: _Part, teaches: _Part) -> None:
        """Go on without a step.

        Args:
            arrives: keeps its trees.
            teaches: learns from it, after that.
        """
        assert self.has_taught
        self._arrives, self._teaches = arrives, teaches

    def arrive(self) -> None:
        """Have its trees; waits if the device is still at it.

        Where the scheduler waits for the drafts, it never is between two steps.
        """
        part, self._arrives = self._arrives, None
        _run(part)

    @property
    def has_taught(self) -> bool:
        """Whether nothing is left to be learnt."""
        return self._teaches is None

    def teach(self) -> None:
        """Learn what is left; may wait as `arrive` does."""
        self.arrive()
        part, self._teaches = self._teaches, None
        _run(part)


def _run(part: _Part | None) -> None:
    if part is not None:
        with gpu_sync_allowed():
            part()
