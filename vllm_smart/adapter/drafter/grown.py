"""Trees that were grown on the device, and what the host makes of them a step later.

The host replays the growth from the candidates: counters, calibration, gate and traces see what they
would have seen had the host grown the trees, and the depth rule says what it would have said.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from vllm_smart.adapter.arrays import HostCopy
from vllm_smart.adapter.drafter.block_marks import TouchedBlocks
from vllm_smart.adapter.drafter.growth_log import GrowthLog
from vllm_smart.adapter.drafter.growth_state import GrowthState
from vllm_smart.adapter.drafter.step import DraftingStep
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.adapter.step_plan import StepResult
from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.torch_growth import ROOT
from vllm_smart.scheduler import BudgetPolicy, DeviceRule
from vllm_smart.tree import TreeBatch


@dataclass(frozen=True)
class LevelPlan:
    """How many rows each further level should have, as the step before has shown.

    A level is decided by the candidates of the one before it, so a plan is at most one level deeper
    than the step that it was made from.
    """

    policy: BudgetPolicy | None = None  # that made it; None: there is no plan
    rows_per_request: tuple[float, ...] = ()

    def level_rows(
        self,
        policy: BudgetPolicy,
        limits: GrowthLimits,
        num_growing: int,
        max_width: int,
        most_slots: int,
    ) -> list[int]:
        """Rows of each level after the first; without a plan all levels, as wide as may be.

        Args:
            policy: in effect.
            limits: of growth.
            num_growing: requests that have roots.
            max_width: most rows of a request.
            most_slots: most rows of a request in all levels together.
        """
        wanted = self.rows_per_request
        if policy is not self.policy:
            wanted = (float(max_width),) * (limits.depth - 1)
        rows, left = [], most_slots * num_growing
        for each in wanted:
            num_rows = min(int(np.ceil(each * num_growing)), max_width * num_growing, left)
            if num_rows <= 0:
                break
            rows.append(num_rows)
            left -= num_rows
        return rows


@dataclass
class GrownTrees:
    """The growth of one step. A request is one that drafts, in the order of the batch."""

    step: DraftingStep
    policy: BudgetPolicy
    num_read: int  # rows that the drafter read, and perhaps a few that did not stand
    most_slots: int  # most rows of a request in all levels together
    max_width: int  # most rows of a request of a level
    depth_left: np.ndarray  # [num_drafting] useful depth, had nothing of the step been rejected
    level_rows: list[int]  # of each further level that is run, padding included
    overhead_ms: float  # predicted, as in `GrowthLog`
    read_ms: float
    levels_ms: float
    touched: tuple[TouchedBlocks, ...] = ()
    # On the device, until the next step's growth.
    req: torch.Tensor = field(init=False)  # [num_drafting] int64 batch indices
    tokens: torch.Tensor = field(init=False)  # [num_drafting, nodes] int64, -1 beyond each tree
    num_chosen: torch.Tensor = field(init=False)  # [num_drafting] int32 nodes of these, roots included
    _num_nodes: int = field(init=False)  # most of a tree
    _trees: HostCopy = field(init=False)
    _candidates: HostCopy = field(init=False)  # the next step does not wait for these

    @property
    def spent_ms(self) -> float:
        """Predicted time of what the step takes besides verification."""
        return self.overhead_ms + self.read_ms + self.levels_ms

    def copy_to_host(self, state: GrowthState, req: torch.Tensor) -> None:
        """Start the transfers of all that the host will ask for.

        Args:
            state: when all parts of the growth are queued.
            req: [num_drafting] int64 batch indices, on the device.
        """
        box, num_reqs = state.outbox, len(req)
        self.req, self._num_nodes = req, box.num_nodes
        self.tokens = box.tree_ints[:num_reqs, 1 : box.num_nodes].long()
        self.num_chosen = box.tree_ints[:num_reqs, -1]
        self._trees = HostCopy(box.tree_ints[:num_reqs], box.tree_floats[:num_reqs])
        self._candidates = HostCopy(
            box.candidate_ints[:num_reqs],
            box.candidate_floats[:num_reqs],
            state.row_counts[: len(self.level_rows), :num_reqs],
        )

    @cached_property
    def trees(self) -> TreeBatch:
        """What was chosen, and beyond it what is next best; the first look may wait for the copies."""
        ints, floats = self._trees.wait()
        token, *rest = np.split(ints[:, : 4 * self._num_nodes], 4, axis=1)
        parts = (*rest, *np.split(floats, 2, axis=1), ints[:, -1])
        names = ("parent", "depth", "rank", "path_prob", "draft_prob", "num_nodes")
        arrays = dict(zip(names, map(np.ascontiguousarray, parts), strict=True))
        return TreeBatch(token=token.astype(np.int64), **arrays)

    def replay(
        self, runtime: TreeRuntime, result: StepResult, prefix_end: np.ndarray, max_len: int
    ) -> tuple[GrowthLog, LevelPlan | None]:
        """What the host would have noted, and what it would do next; may wait for the copies.

        Args:
            result: what the step has brought.
            prefix_end: [num_drafting] position after the last one that the drafter has read.
            max_len: no position reaches it.

        Returns:
            The log, and the plan of the next step's levels; None if nobody was asked for one.
        """
        ints, floats, row_counts = self._candidates.wait()
        token, parent = np.split(ints, 2, axis=1)
        path_prob, draft_prob = np.split(floats, 2, axis=1)

        step, slots = self.step, self.step.slots
        useful_depth = self.depth_left + step.scheduled_end - result.end[step.drafting]
        log = GrowthLog(
            drafting=step.decision,
            indices=step.drafting,
            load=step.load,
            pool=runtime.new_pool(slots),
            grows=np.flatnonzero(result.emits[step.drafting] & (useful_depth > 0)),
            useful_depth=useful_depth,
            capacity=np.minimum(self.most_slots, max_len - prefix_end),
            num_read=self.num_read,
            overhead_ms=self.overhead_ms,
            read_ms=self.read_ms,
            max_width=self.max_width,
            levels_ms=self.levels_ms,
            level_rows=self.level_rows,
        )
        log.trees = self.trees
        known = _KnownCandidates(token, parent, path_prob, draft_prob)
        plan: LevelPlan | None = _Replay(runtime, log, known).run(self.policy, row_counts)
        if self.policy.device_rule is DeviceRule.ALL or not len(log.grows):
            plan = None
        if runtime.is_tracing:
            log.allocation = self.policy.choose(log.pool, log.load, log.spent_ms)
        return log, plan


@dataclass(frozen=True)
class _KnownCandidates:
    """All candidates by the device's columns, [num_drafting, num_columns] each."""

    token: np.ndarray
    parent: np.ndarray
    path_prob: np.ndarray
    draft_prob: np.ndarray


class _Replay:
    """Grows the pool of `log` again, and asks the policy before each level."""

    def __init__(self, runtime: TreeRuntime, log: GrowthLog, known: _KnownCandidates) -> None:
        self.controller, self.limits = runtime.controller, runtime.limits
        self.log, self.known = log, known
        self.node_of = np.zeros_like(known.parent)  # [num_drafting, num_columns] pool ids

    def run(self, policy: BudgetPolicy, row_counts: np.ndarray) -> LevelPlan:
        """Replay all levels.

        Args:
            row_counts: [num_levels - 1, num_drafting] rows of each further level.
        """
        log = self.log
        used = np.zeros(len(log.indices), np.int64)
        spent_ms = log.overhead_ms + log.read_ms
        wanted: list[float] = []
        self._add_level(0, log.grows, np.zeros_like(log.grows))
        for depth in range(1, self.limits.depth):
            is_drafted = depth <= len(row_counts) and bool(row_counts[depth - 1].any())
            is_open = len(wanted) == depth - 1  # whether all levels before were worth it
            if not len(log.grows) or not (is_drafted or is_open):
                break
            log.child_acceptance.append(self.controller.acceptance.mean_by_rank(depth + 1))
            if is_open and policy.device_rule is not DeviceRule.ALL:
                num_rows, level_ms = self._ask(policy, depth, log.capacity - used, spent_ms)
                wanted += [num_rows / len(log.grows)] if num_rows else []
                spent_ms += level_ms
            if not is_drafted:
                break
            counts = row_counts[depth - 1]
            req = np.repeat(np.arange(len(counts)), counts)
            place = np.arange(len(req)) - np.repeat(np.cumsum(counts) - counts, counts)
            self._add_level(depth, req, place)
            used += counts
        return LevelPlan(policy, tuple(wanted))

    def _ask(
        self, policy: BudgetPolicy, depth: int, free: np.ndarray, spent_ms: float
    ) -> tuple[int, float]:
        """Rows of the next level that the policy would run, and their milliseconds."""
        log, pool = self.log, self.log.pool
        width = np.minimum(min(self.limits.width, log.max_width), free)
        frontier = pool.frontier(width, active=log.useful_depth > depth)
        if not len(frontier.req):
            return 0, 0.0
        expanded, level_ms = policy.level(pool, frontier, log.child_acceptance[-1], log.load, spent_ms)
        return int(expanded.sum()), level_ms

    def _add_level(self, level: int, req: np.ndarray, place: np.ndarray) -> None:
        """Add the children of some nodes, [num_rows] requests and places in their frontiers."""
        if not len(req):
            return
        pool, known, children = self.log.pool, self.known, self.limits.children
        first = level * self.limits.width * children
        column = first + place[:, None] * children + np.arange(children)
        row = req[:, None]
        node = pool.size[req][:, None] + column - first
        above = known.parent[req, column[:, 0]]
        parent = np.where(above == ROOT, 0, self.node_of[req, np.maximum(above, 0)])
        self.node_of[row, column] = node
        pool.add_children(req, parent, known.token[row, column], known.draft_prob[row, column])
        # Exactly as the device had them: ties and orders must not depend on rounding.
        pool.path_prob[row, node] = known.path_prob[row, column]
        self.controller.saw_level(pool.num_levels, pool.parent_mass, pool.child_mass)
