"""Growing recorded trees again, as another policy would have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.evidence import GRAMMAR, MODEL
from vllm_smart.kernels.grow import NUM_CONFIDENCES
from vllm_smart.profiling import StepCost
from vllm_smart.proposer import (
    CandidatePool,
    Candidates,
    CandidateSource,
    GrowthBounds,
    RecordedSource,
    grow,
)
from vllm_smart.scheduler import (
    Allocation,
    BudgetPolicy,
    FrontierRows,
    PolicyLevels,
    usable_levels,
    usable_probs,
)
from vllm_smart.trace.records import Decision
from vllm_smart.trace.verdicts import Paths

_Nodes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Regrown:
    """A policy's decision on a recorded step."""

    nodes: list[_Nodes]  # per request, the candidates chosen, best first, roots excluded
    paths: Sequence[Paths]  # per request, all that there were
    candidates: Candidates  # the same
    allocation: Allocation
    level_rows: tuple[int, ...]  # rows of each draft level after the first
    branches: bool  # some tree is not a chain
    prob: npt.NDArray[np.float32]  # [num_growing, <= node_budget] path_prob of trees, best first
    depth: npt.NDArray[np.int32]  # of the same nodes
    undrafted: npt.NDArray[np.float32]  # [num_growing, <= node_budget] of what came before the drafter
    drafts: bool  # whether the drafter has run
    beyond_record: bool  # it wanted candidates that were not drafted


class KnownSource(CandidateSource, Protocol):
    """Of candidates that are known already."""

    lacks: bool
    """Whether anybody has asked for what is not known."""


class Memory(Protocol):
    """What is known about the candidates of recorded steps."""

    def begin(self, decision: Decision, limits: GrowthLimits) -> tuple[CandidatePool, KnownSource]:
        """A pool with what there is without the drafter, and what the drafter named."""

    def paths(self, decision: Decision, candidates: Candidates) -> Sequence[Paths]:
        """Of each request, by the columns of `candidates`."""


class AsRecorded:
    """Each candidate is as likely as it was recorded to be."""

    def __init__(self, calibrated: bool) -> None:
        """Args:
        calibrated: as for `recorded_candidates`.
        """
        self._calibrated = calibrated

    def begin(self, decision: Decision, limits: GrowthLimits) -> tuple[CandidatePool, KnownSource]:
        """All of them hidden; see `Memory`."""
        known = recorded_candidates(decision, self._calibrated)
        return CandidatePool.hiding(known, limits), RecordedSource(known, limits.children)

    def paths(self, decision: Decision, candidates: Candidates) -> Sequence[Paths]:
        """As they were recorded."""
        return decision.requests


def recorded_candidates(decision: Decision, calibrated: bool) -> Candidates:
    """What was drafted in a step. Nodes keep their recorded numbers, so that ties break as they did.

    Args:
        decision: the step.
        calibrated: whether candidates are ordered by their recorded path_prob, or by the products of
            what the draft said.
    """
    requests = decision.requests
    capacity = max((len(request.token) for request in requests), default=1)
    uncapped = np.iinfo(np.int64).max
    caps = [uncapped if request.max_nodes is None else request.max_nodes for request in requests]
    known = Candidates.roots(
        len(requests),
        capacity,
        np.array([request.weight for request in requests], np.float32),
        np.array(caps, np.int64),
    )
    for row, request in enumerate(requests):
        size = known.size[row] = len(request.token)
        for name in ("token", "parent", "depth", "rank", "draft_prob"):
            getattr(known, name)[row, :size] = getattr(request, name)
        prob = request.path_prob if calibrated else products(request.parent, request.draft_prob)
        known.path_prob[row, :size] = prob
        is_forced = request.source[1:] == GRAMMAR
        known.source[row, 1:size] = np.where(is_forced, GRAMMAR, MODEL)
    return known


def products(
    parent: npt.NDArray[np.int64], draft_prob: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """[num_candidates] what the draft says about each path."""
    product = draft_prob.copy()
    for node in range(1, len(product)):
        product[node] *= product[parent[node]]
    return product


class _RecordedLevels(PolicyLevels):
    """As far as there is a record of what to expect."""

    lacks = False

    def __init__(self, policy: BudgetPolicy, decision: Decision, spent_ms: float) -> None:
        recorded = decision.child_acceptance
        super().__init__(
            policy,
            decision.load,
            spent_ms,
            # The last one stands for deeper levels, too.
            lambda depth: recorded[min(depth - 1, len(recorded)) - 1].reshape(NUM_CONFIDENCES, -1),
        )
        self._has_record = len(recorded) > 0

    def ask(self, pool: Any, frontier: FrontierRows, depth: int) -> npt.NDArray[np.bool_]:
        if not self._has_record:  # the trace was not to grow any deeper
            self.lacks = True
            return np.zeros(len(frontier.req), bool)
        return super().ask(pool, frontier, depth)


def regrow(
    decision: Decision,
    policy: BudgetPolicy,
    cost: StepCost,
    memory: Memory,
    drafts: Callable[[Candidates], bool] = lambda candidates: True,
) -> Regrown:
    """Let `policy` grow and choose from what was recorded, as the engine would.

    Args:
        decision: with drafted requests.
        policy: to replay.
        cost: charges what the drafter reads of the step's own; the policy charges its own levels.
        memory: of the candidates.
        drafts: whether the drafter runs, or rests, by the candidates that there are without it.
    """
    limits, requests = policy.limits, decision.requests
    bounds = GrowthBounds(
        useful_depth=np.array([request.max_depth for request in requests], np.int64),
        most_rows=np.array([request.max_rows for request in requests], np.int64),
        max_width=decision.max_width,
    )
    grows = np.flatnonzero(bounds.useful_depth > 0)
    pool, source = memory.begin(decision, limits)
    undrafted = usable_probs(pool.candidates, limits)[grows]
    runs = drafts(pool.candidates)
    spent_ms = cost.overhead_ms(decision.load.num_requests, runs)
    if runs:
        num_usual = decision.read_rows - decision.sunk_rows
        spent_ms += cost.read_ms(num_usual, decision.candidate_rows)
    levels = _RecordedLevels(policy, decision, spent_ms)
    if runs:
        grow(pool, source, grows, bounds, levels)
    candidates = pool.candidates
    allocation = levels.choose(candidates)
    order, _ = candidates.best_first()
    nodes = [
        row[1 : count + 1]
        for row, count in zip(order, allocation.num_draft_nodes.tolist(), strict=True)
    ]
    branches = any(
        bool((candidates.depth[row, tree] != np.arange(1, len(tree) + 1)).any())
        for row, tree in enumerate(nodes)
    )
    return Regrown(
        nodes,
        memory.paths(decision, candidates),
        candidates,
        allocation,
        tuple(levels.rows),
        branches,
        usable_probs(candidates, limits)[grows],
        usable_levels(candidates, limits)[grows],
        undrafted,
        runs,
        beyond_record=source.lacks or levels.lacks,
    )
