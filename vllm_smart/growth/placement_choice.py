"""Whether a drafter in a process of its own pays on a machine, by cost tables that were measured there.

What an inline drafter makes is known from its table (`scheduler.explain`). What one beside the target
makes depends on how often its tree is found ready, so its steps are played: the same middling drafter
expands as many nodes as there is time for while the target verifies.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vllm_smart.config import GrowthLimits
from vllm_smart.overlap.grown_tree import FEWEST_CHILDREN, LEAST_PROB, MOST_BLOCKS, GrownTree
from vllm_smart.profiling import CostTable, TableKey
from vllm_smart.scheduler import Explanation, StepLoad, best_prefix, explain
from vllm_smart.scheduler.explain import TYPICAL_ACCEPTANCE, TYPICAL_LIMITS

_BATCH_SIZES = 8  # the largest that counts
_LEAST_GAIN = 0.02  # or the noise of the tables, if that is more
_STEPS = 400


@dataclass(frozen=True)
class PlacementCosts:
    """What was measured, of one engine on one machine; None is not known."""

    inline: CostTable | None
    beside: CostTable | None  # in an engine whose drafter has a process of its own
    more_threads: CostTable | None = None  # inline, with the drafter's cores given to the target

    @classmethod
    def among(cls, tables: Sequence[tuple[TableKey, CostTable]]) -> "PlacementCosts":
        """Those of one engine that go with the first of some tables of it."""
        by_threads = {key.threads: table for key, table in tables}
        target, beside = tables[0][0].threads
        if beside is None:
            beside = min((b for t, b in by_threads if t == target and b is not None), default=0)
        return cls(
            by_threads.get((target, None)),
            by_threads.get((target, beside)),
            by_threads.get((target + beside, None)) if beside else None,
        )


@dataclass(frozen=True)
class PlacedStep:
    """What both placements make at one batch size, for a middling drafter."""

    batch_size: int
    inline_ms: float  # of a step, by the tokens that a request gets of it
    beside_ms: float
    hits: float  # share of steps that find a request's tree

    @property
    def gain(self) -> float:
        """How many times as fast it is beside the target."""
        return self.inline_ms / self.beside_ms


def choose_placement(
    costs: PlacementCosts, limits: GrowthLimits = TYPICAL_LIMITS, max_batch_size: int = _BATCH_SIZES
) -> tuple[Literal["inline", "process"], str]:
    """Where the drafter is faster, the target's threads given, and why; inline where facts are missing.

    Args:
        costs: what is known.
        limits: how far trees may grow.
        max_batch_size: requests at a time.
    """
    inline, beside = costs.inline, costs.beside
    lacks = [
        what
        for is_there, what in (
            (inline is not None and inline.samples.draft, "an inline drafter"),
            (
                beside is not None and beside.samples.draft and beside.samples.slowed,
                "a target that its drafter drafts beside",
            ),
        )
        if not is_there
    ]
    if inline is None or beside is None or lacks:
        return "inline", (
            f"costs of {' and of '.join(lacks)} were not measured here (`vllm-smart profile` with "
            "drafter.placement auto does)"
        )
    steps = list(_compare(inline, beside, limits, max_batch_size))
    gain = float(np.exp(np.mean(np.log([step.gain for step in steps]))))
    noise = max(_LEAST_GAIN, inline.samples.noise, beside.samples.noise)
    pays = gain > 1 + noise
    each = ", ".join(f"{step.gain:.2f} at {step.batch_size}" for step in steps)
    why = (
        f"drafting beside the target is {gain:.2f} times as fast as inline ({each} requests), and "
        f"{1 + noise:.2f} is what it takes; a middling drafter is ready in {steps[0].hits:.0%} of "
        f"steps and slows the target by {beside.slowdown(1) - 1:.0%}. "
    )
    return ("process" if pays else "inline"), why + _of_threads(costs, steps, limits)


def _of_threads(costs: PlacementCosts, steps: Sequence[PlacedStep], limits: GrowthLimits) -> str:
    """What the drafter's cores would be worth to the target, which `auto` cannot give it."""
    if costs.more_threads is None or not costs.more_threads.samples.draft:
        return "What its cores would give the target was not measured"
    best_ms = [min(step.inline_ms, step.beside_ms) for step in steps]
    more_ms = [_ms(each) for each in explain(costs.more_threads, limits, steps[-1].batch_size)]
    gain = float(np.exp(np.mean(np.log(np.array(best_ms) / np.array(more_ms)))))
    is_better = "; give the target these threads" if gain > 1 else ""
    return (
        "With its cores as threads of the target, an inline drafter is "
        f"{gain:.2f} times as fast{is_better}"
    )


def _ms(explained: Explanation) -> float:
    return explained.predicted_ms / explained.acceptance_length


def _compare(
    inline: CostTable, beside: CostTable, limits: GrowthLimits, max_batch_size: int
) -> Iterator[PlacedStep]:
    """For batch sizes 1, 2, 4, ..."""
    for explained in explain(inline, limits, min(max_batch_size, _BATCH_SIZES)):
        played = _Played(beside, limits, explained.batch_size)
        for _ in range(_STEPS):
            played.step()
        # Where drafting does not pay, the drafter rests, and slows nobody.
        beside_ms = min(played.ms / played.tokens, explained.plain_ms)
        yield PlacedStep(explained.batch_size, _ms(explained), beside_ms, played.hits / _STEPS)


class _Played:
    """Steps of one request among others like it.

    Attributes:
        ms, tokens, hits: of all steps so far.
    """

    def __init__(self, cost: CostTable, limits: GrowthLimits, batch_size: int) -> None:
        samples = cost.samples
        slowed = tuple((size, ms * cost.slowdown(size)) for size, ms in samples.verify)
        self._cost = CostTable(samples.model_copy(update={"verify": slowed, "slowed": ()}))
        self._plain_ms = cost.verify_ms(batch_size)
        self._limits, self._batch_size = limits, batch_size
        self._load = StepLoad(num_requests=batch_size)
        most = max(limits.children, FEWEST_CHILDREN)
        accepted = np.array(TYPICAL_ACCEPTANCE[:most], np.float32)
        self._accepted, children = accepted, len(accepted)
        self._up_to_rank = np.cumsum(accepted)  # beyond its last entry: a token that nobody has named
        self._tree = GrownTree(children, MOST_BLOCKS)
        # Requests share the drafter's levels, of at most two widths of rows.
        level_rows = min(2, batch_size) * limits.width
        self._level_ms = cost.draft_ms(level_rows)
        self._level_rows = max(1, round(level_rows / batch_size))  # of each
        self._unused_ms = 0.0
        self._rng = np.random.default_rng(0)
        self.ms = self.tokens = 0.0
        self.hits = 0

    def step(self) -> None:
        """One step of the target, with the drafter going on beside it."""
        self.hits += self._tree.num_blocks > 0
        spent_ms, verified = self._verified()
        tree = self._tree
        step_ms = self._cost.verify_ms(self._batch_size * (1 + len(verified)))
        self.ms += spent_ms + step_ms
        self.tokens += 1.0 + float(tree.path_prob[verified].sum())
        self._draft(step_ms)
        tree.advance(self._text(verified))

    def _verified(self) -> tuple[float, np.ndarray]:
        """What the step waits for, and the nodes that it verifies."""
        spent_ms, nothing = 0.0, np.zeros(0, np.int64)
        if not self._tree.num_blocks:
            if self._batch_size > 1:  # others do not wait for a request that missed
                return 0.0, nothing
            self._expand(np.zeros(1, np.int64))
            spent_ms = self._level_ms
        nodes, rate = self._best(spent_ms)
        # A further level is waited for where that pays.
        while len(news := self._tree.best(self._level_rows, self._limits.depth, LEAST_PROB)):
            before = copy.deepcopy(self._tree)
            self._expand(news)
            more, faster = self._best(spent_ms + self._level_ms)
            if faster <= rate:
                self._tree = before
                break
            nodes, rate, spent_ms = more, faster, spent_ms + self._level_ms
        if spent_ms and rate * self._plain_ms <= 1:
            self._tree.clear()
            return 0.0, nothing
        return spent_ms, nodes

    def _best(self, spent_ms: float) -> tuple[np.ndarray, float]:
        """The nodes that pay, and the step's tokens per millisecond."""
        tree = self._tree
        known = np.arange(1, tree.size)
        rank = (known - 1) % tree.children
        known = known[(tree.depth[known] <= self._limits.depth) & (rank < self._limits.children)]
        order = known[np.argsort(-tree.path_prob[known], kind="stable")][: self._limits.node_budget]
        values = np.repeat(tree.path_prob[order], self._batch_size)
        choice = best_prefix(values, self._load, self._cost, spent_ms)
        return order[: round(choice.num_nodes / self._batch_size)], choice.rate

    def _draft(self, step_ms: float) -> None:
        """What the drafter expands during a step; the first level after a miss reads the text."""
        self._unused_ms += step_ms
        while self._unused_ms >= self._level_ms:
            self._unused_ms -= self._level_ms
            if not self._tree.num_blocks:
                self._expand(np.zeros(1, np.int64))
                continue
            node = self._tree.best(self._level_rows, 99, LEAST_PROB)
            if not len(node):
                self._unused_ms = 0.0
                return
            self._expand(node)

    def _expand(self, node: np.ndarray) -> None:
        rows, children = len(node), self._tree.children
        token = np.tile(np.arange(children), (rows, 1))
        self._tree.add(node, token, np.tile(self._accepted, (rows, 1)))

    def _text(self, verified: np.ndarray) -> np.ndarray:
        """What the request says in the step: ranks, or one that the drafter has not named."""
        tree, may = self._tree, set(verified.tolist())
        text, at = [], 0
        while True:
            rank = int(np.searchsorted(self._up_to_rank, self._rng.random(), side="right"))
            text.append(rank)
            first = int(tree.first[at])
            if rank == tree.children or first < 0 or first + rank not in may:
                return np.array(text, np.int32)
            at = first + rank
