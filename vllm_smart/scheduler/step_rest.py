"""Whether a step does without the drafter because n-grams promise enough for it.

The gate says whether drafting pays by and large. Where a text repeats itself, n-grams name what comes
next, and the drafter adds little for its time. How much it adds is learnt by what n-grams promise.
"""

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass, replace

from vllm_smart.scheduler.budget import Choice, StepLoad

# Tokens that n-grams promise a request, between classes of steps.
_CLASSES = (0.25, 0.5, 1.0, 2.0, 4.0)
_WINDOW = 32  # steps of a class that its gain is a moving mean of
_KNOWN = 8  # steps of a class after which it means something
_LOOK_AGAIN = 16  # rests of a class until its drafter runs once more, so that what is known stays true


@dataclass
class _Gain:
    """What the drafter has added to steps of a class."""

    num_known: int = 0
    tokens: float = 0.0
    ms: float = 0.0
    num_rests: int = 0  # since it ran

    def learn(self, tokens: float, ms: float) -> None:
        self.num_known += 1
        weight = max(1 / self.num_known, 1 / _WINDOW)
        self.tokens += weight * (tokens - self.tokens)
        self.ms += weight * (ms - self.ms)


class StepRest:
    """What drafting has gained in steps for which n-grams promised as much, by size of the batch."""

    def __init__(self) -> None:
        self._gains: dict[tuple[int, int], _Gain] = {}

    def suffices(
        self, without: Choice, load: StepLoad, prefers: Callable[[Choice, Choice], bool]
    ) -> bool:
        """Whether the step is better verified as it is.

        Args:
            without: what would be verified without the drafter.
            load: of the step that will verify.
            prefers: whether the policy prefers one choice to another.
        """
        gain = self._gain_of(without, load)
        if gain.num_known < _KNOWN or gain.num_rests >= _LOOK_AGAIN:
            return False
        served = without.rate * without.predicted_ms + gain.tokens
        ms = without.predicted_ms + gain.ms
        drafted = replace(
            without,
            expected_tokens=without.expected_tokens + gain.tokens,
            predicted_ms=ms,
            rate=served / ms,
        )
        if prefers(drafted, without):
            return False
        gain.num_rests += 1
        return True

    def learn(self, without: Choice, chosen: Choice, load: StepLoad) -> None:
        """The drafter has run.

        Args:
            without: what would have been verified without it.
            chosen: what is going to be.
            load: of the step that will verify.
        """
        gain = self._gain_of(without, load)
        gain.num_rests = 0
        gain.learn(
            chosen.expected_tokens - without.expected_tokens,
            chosen.predicted_ms - without.predicted_ms,
        )

    def _gain_of(self, without: Choice, load: StepLoad) -> _Gain:
        promised = without.expected_tokens / max(load.num_requests, 1) - 1.0
        key = load.num_requests.bit_length(), bisect(_CLASSES, promised)
        return self._gains.setdefault(key, _Gain())
