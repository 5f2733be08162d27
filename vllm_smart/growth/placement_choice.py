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
        num_steps = _STEPS // explained.batch_size
        for _ in range(num_steps):
            played.step()
        # Where drafting does not pay, the drafter rests, and slows nobody.
        beside_ms = min(played.ms / played.tokens, explained.plain_ms)
        yield PlacedStep(explained.batch_size, _ms(explained), beside_ms, played.hits / num_steps)


class _Played:
    """Steps of a batch of middling requests.

    Attributes:
        ms, tokens, hits: of all steps so far; the last two of each request.
    """

    def __init__(self, cost: CostTable, limits: GrowthLimits, batch_size: int) -> None:
        samples = cost.samples
        slowed = tuple((size, ms * cost.slowdown(size)) for size, ms in samples.verify)
        self._cost = CostTable(samples.model_copy(update={"verify": slowed, "slowed": ()}))
        self._limits, self._batch_size = limits, batch_size
        self._load = StepLoad(num_requests=batch_size)
        most = max(limits.children, FEWEST_CHILDREN)
        accepted = np.array(TYPICAL_ACCEPTANCE[:most], np.float32)
        self._accepted, children = accepted, len(accepted)
        self._up_to_rank = np.cumsum(accepted)  # beyond its last entry: a token that nobody has named
        self._trees = [GrownTree(children, MOST_BLOCKS) for _ in range(batch_size)]
        # Requests share the drafter's levels, of at most two widths of rows.
        self._level_rows = min(2, batch_size) * limits.width
        self._unused_ms = 0.0
        self._rng = np.random.default_rng(0)
        self.ms = self.tokens = self.hits = 0.0

    def step(self) -> None:
        """One step of the target, with the drafter going on beside it."""
        self.hits += sum(tree.num_blocks > 0 for tree in self._trees) / self._batch_size
        spent_ms, verified = self._verified()
        num_nodes = sum(map(len, verified))
        step_ms = self._cost.verify_ms(self._batch_size + num_nodes)
        self.ms += spent_ms + step_ms
        promised = sum(
            float(tree.path_prob[nodes].sum())
            for tree, nodes in zip(self._trees, verified, strict=True)
        )
        self.tokens += 1.0 + promised / self._batch_size
        self._draft(step_ms)
        for tree, nodes in zip(self._trees, verified, strict=True):
            tree.advance(self._text(tree, nodes))

    def _verified(self) -> tuple[float, list[np.ndarray]]:
        """What the step waits for, and the nodes that it verifies, by request."""
        spent_ms = 0.0
        nodes, rate = self._best(spent_ms)
        # Roots that nothing is known below, then further levels, are waited for where that pays.
        while level := self._missing() or self._next(self._limits.depth):
            before = self._trees
            self._trees = copy.deepcopy(before)
            self._expand(level)
            more_ms = spent_ms + self._level_ms(level)
            more, faster = self._best(more_ms)
            if faster <= rate:
                self._trees = before
                break
            nodes, rate, spent_ms = more, faster, more_ms
        return spent_ms, nodes

    def _best(self, spent_ms: float) -> tuple[list[np.ndarray], float]:
        """The nodes that pay, by request, and the step's tokens per millisecond."""
        of_tree, nodes, probs = [], [], []
        for index, tree in enumerate(self._trees):
            known = np.arange(1, tree.size)
            rank = (known - 1) % tree.children
            known = known[(tree.depth[known] <= self._limits.depth) & (rank < self._limits.children)]
            order = known[np.argsort(-tree.path_prob[known], kind="stable")]
            nodes.append(order[: self._limits.node_budget])
            probs.append(tree.path_prob[nodes[-1]])
            of_tree.append(np.full(len(nodes[-1]), index))
        prob, node, owner = map(np.concatenate, (probs, nodes, of_tree))
        order = np.argsort(-prob, kind="stable")
        choice = best_prefix(prob[order], self._load, self._cost, spent_ms)
        chosen = order[: choice.num_nodes]
        return [node[chosen[owner[chosen] == i]] for i in range(self._batch_size)], choice.rate

    def _draft(self, step_ms: float) -> None:
        """What the drafter expands during a step; the first level after a miss reads the text."""
        self._unused_ms += step_ms
        while level := self._missing() or self._next(99):
            level_ms = self._level_ms(level)
            if level_ms > self._unused_ms:
                return
            self._unused_ms -= level_ms
            self._expand(level)
        self._unused_ms = 0.0

    def _missing(self) -> list[tuple[int, int]]:
        """Roots of requests that nothing is known below, each a request and a node."""
        return [(index, 0) for index, tree in enumerate(self._trees) if not tree.num_blocks]

    def _next(self, max_depth: int) -> list[tuple[int, int]]:
        """The likeliest nodes to expand, of all requests, as many as a level has rows."""
        best = [
            (-float(tree.path_prob[node]), index, int(node))
            for index, tree in enumerate(self._trees)
            for node in tree.best(self._level_rows, max_depth, LEAST_PROB)
        ]
        return [(index, node) for _, index, node in sorted(best)[: self._level_rows]]

    def _level_ms(self, level: Sequence[tuple[int, int]]) -> float:
        return self._cost.draft_ms(len(level))

    def _expand(self, level: Sequence[tuple[int, int]]) -> None:
        """Name children of some nodes."""
        for index, node in level:
            tree = self._trees[index]
            token = np.arange(tree.children)[None]
            tree.add(np.array([node]), token, self._accepted[None])

    def _text(self, tree: GrownTree, verified: np.ndarray) -> np.ndarray:
        """What a request says in the step: ranks, or one that the drafter has not named."""
        may = set(verified.tolist())
        text, at = [], 0
        while True:
            rank = int(np.searchsorted(self._up_to_rank, self._rng.random(), side="right"))
            text.append(rank)
            first = int(tree.first[at])
            if rank == tree.children or first < 0 or first + rank not in may:
                return np.array(text, np.int32)
            at = first + rank
