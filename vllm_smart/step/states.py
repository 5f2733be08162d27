"""A step on its way from the device: queued, then arrived, then learnt, in no other order."""

from dataclasses import dataclass
from typing import Protocol


class StepRemainder(Protocol):
    """What is left to be done for a step once it is queued; each part once."""

    def keep(self) -> None:
        """Keep its trees for the next step to verify; waits if the device is still at it."""

    def learn(self) -> None:
        """Learn from what has come of it; may wait likewise. Only after `keep`."""


@dataclass(frozen=True)
class QueuedStep:
    """The device may be at it. The next step cannot be planned before it has arrived."""

    remainder: StepRemainder

    def arrive(self) -> "ArrivedStep":
        """Wait for its trees. Where the scheduler waits for them, it never is between two steps."""
        self.remainder.keep()
        return ArrivedStep(self.remainder)


@dataclass(frozen=True)
class ArrivedStep:
    """Its trees are kept; learning can wait until the device has the next step's forward to do."""

    remainder: StepRemainder

    def learn(self) -> None:
        """Learn what is left to be learnt; nothing is, afterwards."""
        self.remainder.learn()
