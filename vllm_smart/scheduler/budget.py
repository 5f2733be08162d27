"""How many of the best candidates to verify: the prefix that emits most tokens per millisecond."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_smart.kernels.choose import BY_RATE, BY_WORTH, FIRST_DROP
from vllm_smart.kernels.choose.cpu import best_level_size, best_prefix_of
from vllm_smart.profiling import Context, StepCost

_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepLoad:
    """What a target step carries besides draft nodes."""

    num_requests: int  # requests that will emit: each has a root row and earns one token anyway
    num_prefill_tokens: int = 0
    context_tokens: int = 0  # KV tokens that the step reads
    # Requests that the step delays and drafts do not help, see `scheduler.queue`. A millisecond of
    # theirs is worth as much as one of a request that emits.
    num_waiting: int = 0

    @property
    def num_served(self) -> int:
        """Requests that the step brings a step further, whatever it verifies."""
        return self.num_requests + self.num_waiting

    @property
    def context(self) -> Context:
        """The KV cache read, as costs are asked for it."""
        return Context(self.context_tokens, self.context_tokens / max(self.num_requests, 1))

    def verify_ms(self, cost: StepCost, num_nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The forward's time by draft nodes of the whole batch, any shape.

        Without what a chunk of a prompt adds to it. That is a sunk cost, paid whatever is verified;
        charged to the tokens of the step, it would make extra nodes look nearly free.
        """
        rows = self.num_requests + num_nodes
        if not self.num_prefill_tokens:
            return cost.verify_ms(rows, self.context)
        with_chunk = self.num_requests + self.num_prefill_tokens
        chunk_ms = cost.verify_ms(with_chunk, self.context) - cost.verify_ms(
            self.num_requests, self.context
        )
        return cost.verify_ms(self.num_prefill_tokens + rows, self.context) - chunk_ms


@dataclass(frozen=True)
class Choice:
    """A number of draft nodes for a step, and what it promises."""

    num_nodes: int  # draft nodes of the whole batch
    expected_tokens: float  # emitted by the step, bonus tokens included
    predicted_ms: float  # drafting, verification and overhead; prompts apart
    rate: float  # expected tokens per millisecond, and one for each request that waits


@dataclass(frozen=True)
class StepPrices:
    """What a step of some load costs by the number of draft nodes verified: looked up once."""

    load: StepLoad
    verify_ms: npt.NDArray[np.float64]  # [most nodes + 1]
    branching_ms: float

    @classmethod
    def of(cls, load: StepLoad, cost: StepCost, most_nodes: int) -> "StepPrices":
        """For up to `most_nodes` draft nodes in the whole batch."""
        verify_ms = load.verify_ms(cost, np.arange(most_nodes + 1))
        return cls(load, verify_ms, cost.branching_ms(load.num_requests))

    def choice(self, num_nodes: int, served: float, ms: float) -> Choice:
        """Of so many nodes, by what they promise: tokens, and one for each request that waits."""
        return Choice(num_nodes, served - self.load.num_waiting, ms, served / ms)


@dataclass(frozen=True)
class ChoiceSpec:
    """How to choose among a batch's candidates, best first."""

    prices: StepPrices | None  # of the step that will verify; None: all that may be, at any price
    goal: int = BY_RATE  # see `kernels.choose`
    price: float = 0.0  # of a millisecond, in tokens; for BY_WORTH


class PrefixRule:
    """How many of a batch's candidates, best first, to verify; and what is worth growing for.

        rate(n) = (R + W + sum of the n best values) / (spent_ms + verify_ms(R + n))

    for R emitting requests and W that wait; see `StepLoad.verify_ms` for steps with prefills. All
    prefixes are looked at, none included, because costs are stairs: the rate may fall and rise again.
    Among equals the smallest is taken.

    Source: the marginal rule of SMART (arXiv 2604.09731); differs: benefit is the sum of path
    probabilities, cost is measured, and the best prefix is global.
    """

    remembers = False  # whether `took` makes a difference
    _goal, _price = BY_RATE, 0.0

    @property
    def aimed_at(self) -> tuple[int, float]:
        """Goal and price, as in `ChoiceSpec`."""
        return self._goal, self._price

    def aim(self, load: StepLoad) -> None:
        """What follows is about a step of this load."""

    def __call__(
        self, values: _Floats, prices: StepPrices, spent_ms: float, branching_value: float = 0.0
    ) -> Choice:
        """The best prefix.

        Args:
            values: [<= most nodes] path probabilities times their requests' weights, never
                increasing; zeros are no candidates.
            prices: of the step that will verify.
            spent_ms: drafting time of the step and its overhead, paid whatever is verified.
            branching_value: of the best candidate that makes a tree of a chain; 0 = none does.
        """
        num_nodes, served, ms = best_prefix_of(
            values,
            prices.verify_ms,
            prices.load.num_served,
            spent_ms,
            branching_value,
            prices.branching_ms,
            self._goal,
            self._price,
        )
        return prices.choice(num_nodes, served, ms)

    def best_level(
        self,
        now: _Floats,
        frontier: _Floats,
        acceptance: _Floats,
        sizes: npt.NDArray[np.int64],
        level_ms: npt.NDArray[np.float64],
        prices: StepPrices,
        spent_ms: float,
        branching_value: float,
    ) -> tuple[int, Choice]:
        """How many of the best frontier nodes to expand; see `kernels.choose.cpu.best_level_size`.

        Returns:
            An index into `sizes`, and what is expected of the step then.
        """
        index, num_nodes, served, ms = best_level_size(
            now,
            frontier,
            acceptance,
            sizes,
            level_ms,
            prices.verify_ms,
            prices.load.num_served,
            spent_ms,
            branching_value,
            prices.branching_ms,
            self._goal,
            self._price,
        )
        return index, prices.choice(num_nodes, served, ms)

    def prefers(self, grow: Choice, stop: Choice, min_gain: float) -> bool:
        """Whether `grow` beats `stop` by the relative gain asked for."""
        return grow.rate > stop.rate * (1.0 + min_gain)

    def took(self, choice: Choice) -> None:
        """A step is going to be run as chosen."""


class FirstDrop(PrefixRule):
    """Stops before the first candidate that lowers the rate.

    Source: CaDDTree's stopping rule, which is right for convex costs and short-sighted on stairs.
    """

    _goal = FIRST_DROP


class LongRun(PrefixRule):
    """The best prefix for the rate of all steps together rather than of each.

    A step whose every choice is slower than the others should not be stretched until its own rate
    is best: what counts is tokens - rate * ms, with the rate that is reached in the long run
    (Dinkelbach's method for ratios; the rate is a moving mean over the steps chosen). Of steps with
    about as many requests: a large batch's rate would forbid a small one to draft. While nothing is
    known, it is the step's best.

    Attributes:
        rate: expected tokens per millisecond of the steps taken like the one aimed at; 0 if none.
    """

    remembers = True

    def __init__(self, window_ms: float = 20_000.0) -> None:
        """Args:
        window_ms: time over which the rate is averaged.
        """
        self._window_ms = window_ms
        self.rate = 0.0
        self._sums: dict[int, tuple[float, float]] = {}  # tokens and ms, by size of the batch
        self._size = 0

    def aim(self, load: StepLoad) -> None:
        """What follows is about a step of this load. Requests that wait make its time dearer."""
        self._size = load.num_requests.bit_length()
        tokens, ms = self._sums.get(self._size, (0.0, 0.0))
        self.rate = tokens / ms if ms else 0.0
        price = self.rate * load.num_served / max(load.num_requests, 1)
        self._goal, self._price = (BY_WORTH, price) if ms else (BY_RATE, 0.0)

    def prefers(self, grow: Choice, stop: Choice, min_gain: float) -> bool:
        """Whether what `grow` gains exceeds what its time is worth."""
        if not self._price:
            return super().prefers(grow, stop, min_gain)
        gain = grow.expected_tokens - stop.expected_tokens
        price = self._price * (grow.predicted_ms - stop.predicted_ms)
        return gain - price > min_gain * stop.expected_tokens

    def took(self, choice: Choice) -> None:
        """A step is going to be run as chosen."""
        kept = max(0.0, 1.0 - choice.predicted_ms / self._window_ms)
        tokens, ms = self._sums.get(self._size, (0.0, 0.0))
        tokens = tokens * kept + choice.expected_tokens
        self._sums[self._size] = tokens, ms * kept + choice.predicted_ms


def best_prefix(values: _Floats, load: StepLoad, cost: StepCost, spent_ms: float) -> Choice:
    """What `PrefixRule` picks of `values` [num_candidates], never increasing."""
    return PrefixRule()(values, StepPrices.of(load, cost, len(values)), spent_ms)
