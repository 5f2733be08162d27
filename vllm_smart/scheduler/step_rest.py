"""Whether a step does without the drafter because n-grams promise enough for it.

The gate says whether drafting pays by and large. Where a text repeats itself, n-grams name what comes
next, and the drafter adds little for its time. How much it adds is learnt by what n-grams promise.
"""

from bisect import bisect
from dataclasses import dataclass, replace

from vllm_smart.scheduler.budget import Choice, StepLoad
from vllm_smart.scheduler.marginal import MarginalPolicy
from vllm_smart.scheduler.policy import Candidates

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

    def __init__(self, policy: MarginalPolicy) -> None:
        """Args:
        policy: that chooses what is verified.
        """
        self._policy = policy
        self._gains: dict[tuple[int, int], _Gain] = {}

    def without(self, pool: Candidates, load: StepLoad, overhead_ms: float) -> Choice:
        """What the step would verify of the candidates that there are before the drafter runs.

        Args:
            load: of the step that will verify.
            overhead_ms: predicted, of a step without the drafter.
        """
        return self._policy.would_choose(pool, load, overhead_ms)

    def suffices(self, without: Choice, load: StepLoad) -> bool:
        """Whether the step is better verified as it is.

        Args:
            without: as `without` returned it.
            load: as for that.
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
        if self._policy.prefers(drafted, without):
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
