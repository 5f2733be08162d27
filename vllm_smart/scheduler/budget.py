"""How many of the best candidates to verify: the prefix that emits most tokens per millisecond."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_smart.profiling import Context, StepCost

_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepLoad:
    """What a target step carries besides draft nodes."""

    num_requests: int  # requests that will emit: each has a root row and earns one token anyway
    num_prefill_tokens: int = 0
    context_tokens: int = 0  # KV tokens that the step reads

    @property
    def context(self) -> Context:
        """The KV cache read, as costs are asked for it."""
        return Context(self.context_tokens, self.context_tokens / max(self.num_requests, 1))


@dataclass(frozen=True)
class Choice:
    """A number of draft nodes for a step, and what it promises."""

    num_nodes: int  # draft nodes of the whole batch
    expected_tokens: float  # emitted by the step, bonus tokens included
    predicted_ms: float  # drafting, verification and overhead
    rate: float  # expected tokens per millisecond


def best_prefix(
    values: _Floats, load: StepLoad, cost: StepCost, spent_ms: float, branching_value: float = 0.0
) -> Choice:
    """The number of best candidates to verify, over all prefixes, none included.

        rate(n) = (R + sum of the n best values) / (spent_ms + verify_ms(P + R + n))

    All prefixes are looked at because costs are stairs: the rate may fall and rise again.

    Args:
        values: [num_candidates] path probabilities times their requests' weights, never increasing.
        load: R emitting requests, P prefill tokens, the context they read.
        cost: measured costs.
        spent_ms: drafting time of the step and its overhead, paid whatever is verified.
        branching_value: of the best candidate that makes a tree of a chain; 0 = none does.

    Returns:
        The best choice; among equals the smallest.

    Source: the marginal rule of SMART (arXiv 2604.09731); differs: benefit is the sum of path
    probabilities, cost is measured, and the best prefix is global.
    """
    tokens, ms = _promises(values, load, cost, spent_ms, branching_value)
    rate = tokens / ms
    return _choice(int(rate.argmax()), tokens, ms, rate)


def first_drop_prefix(
    values: _Floats, load: StepLoad, cost: StepCost, spent_ms: float, branching_value: float = 0.0
) -> Choice:
    """As `best_prefix`, but stops before the first candidate that lowers the rate.

    Source: CaDDTree's stopping rule, which is right for convex costs and short-sighted on stairs.
    """
    tokens, ms = _promises(values, load, cost, spent_ms, branching_value)
    rate = tokens / ms
    drops = np.flatnonzero(rate[1:] < rate[:-1])
    return _choice(int(drops[0]) if len(drops) else len(rate) - 1, tokens, ms, rate)


class PrefixRule:
    """How many of a batch's candidates, best first, to verify; and what is worth growing for."""

    def __init__(self, pick: Callable[..., Choice] = best_prefix) -> None:
        """Args:
        pick: `best_prefix` or `first_drop_prefix`.
        """
        self._pick = pick

    def __call__(
        self,
        values: _Floats,
        load: StepLoad,
        cost: StepCost,
        spent_ms: float,
        branching_value: float = 0.0,
    ) -> Choice:
        """Arguments as of `best_prefix`."""
        return self._pick(values, load, cost, spent_ms, branching_value)

    def prefers(self, grow: Choice, stop: Choice, min_gain: float) -> bool:
        """Whether `grow` beats `stop` by the relative gain asked for."""
        return grow.rate > stop.rate * (1.0 + min_gain)

    def took(self, choice: Choice) -> None:
        """A step is going to be run as chosen."""


class LongRunPrefix(PrefixRule):
    """The best prefix for the rate of all steps together rather than of each.

    A step whose every choice is slower than the others should not be stretched until its own rate
    is best: what counts is tokens - rate * ms, with the rate that is reached in the long run
    (Dinkelbach's method for ratios; the rate is a moving mean over the steps chosen).
    """

    def __init__(self, window_ms: float = 20_000.0) -> None:
        """Args:
        window_ms: time over which the rate is averaged.
        """
        super().__init__()
        self._window_ms = window_ms
        self._tokens = self._ms = 0.0

    def __call__(
        self,
        values: _Floats,
        load: StepLoad,
        cost: StepCost,
        spent_ms: float,
        branching_value: float = 0.0,
    ) -> Choice:
        """The prefix that adds most to the long run; while nothing is known, the step's best."""
        tokens, ms = _promises(values, load, cost, spent_ms, branching_value)
        rate = tokens / ms
        worth = tokens - self.rate * ms if self._ms else rate
        return _choice(int(worth.argmax()), tokens, ms, rate)

    @property
    def rate(self) -> float:
        """Expected tokens per millisecond of the steps taken; 0 before the first."""
        return self._tokens / self._ms if self._ms else 0.0

    def prefers(self, grow: Choice, stop: Choice, min_gain: float) -> bool:
        """Whether what `grow` gains exceeds what its time is worth."""
        if not self._ms:
            return super().prefers(grow, stop, min_gain)
        gain = grow.expected_tokens - stop.expected_tokens
        price = self.rate * (grow.predicted_ms - stop.predicted_ms)
        return gain - price > min_gain * stop.expected_tokens

    def took(self, choice: Choice) -> None:
        """A step is going to be run as chosen."""
        kept = max(0.0, 1.0 - choice.predicted_ms / self._window_ms)
        self._tokens = self._tokens * kept + choice.expected_tokens
        self._ms = self._ms * kept + choice.predicted_ms


def _promises(
    values: _Floats, load: StepLoad, cost: StepCost, spent_ms: float, branching_value: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Expected tokens and milliseconds of every prefix: [num_candidates + 1] float64 each."""
    num_choices = len(values) + 1
    tokens = np.empty(num_choices)
    tokens[0] = load.num_requests
    tokens[1:] = values
    np.cumsum(tokens, out=tokens)
    fixed = load.num_prefill_tokens + load.num_requests
    ms = cost.verify_ms(np.arange(fixed, fixed + num_choices), load.context) + spent_ms
    if branching_value:
        last_chain = len(values) - int(values[::-1].searchsorted(branching_value, side="right"))
        ms[last_chain + 1 :] += cost.branching_ms(load.num_requests)
    return tokens, ms


def _choice(
    num_nodes: int,
    tokens: npt.NDArray[np.float64],
    ms: npt.NDArray[np.float64],
    rate: npt.NDArray[np.float64],
) -> Choice:
    return Choice(num_nodes, float(tokens[num_nodes]), float(ms[num_nodes]), float(rate[num_nodes]))
