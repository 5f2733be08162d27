"""Speculation of one simulated engine: the product's own controller, growth and walk.

Everything that decides is what a worker has: `Controller` with gate, policy, calibration and live
costs, `grow`, and the backlog of what the drafter has not read. Simulated is what a drafter would say.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_smart.config import SmartConfig
from vllm_smart.kernels.outcomes.cpu import judged_nodes
from vllm_smart.profiling import CostTable, StepShape
from vllm_smart.proposer import CandidatePool, GrowthBounds, grow
from vllm_smart.proposer.backlog import Backlog
from vllm_smart.scheduler import Controller, Drafting, PolicyLevels, Probes, StepLoad
from vllm_smart.simulate.drafter import TARGETS_TOKEN, Expansions, SimulatedSource
from vllm_smart.step import TreeStore
from vllm_smart.tree.walk import walk

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Emitting:
    """Requests after the target's part of a step, [num_reqs] each."""

    slots: _Ints
    requests: _Ints  # their numbers
    start: _Ints  # first position that the step computed
    root: _Ints  # position of the last known token before the step
    end: _Ints  # position after the last one that stands
    emits: npt.NDArray[np.bool_]  # whether each has emitted a token
    tokens_left: _Ints  # that it may emit after this step


@dataclass(frozen=True)
class Drafted:
    """What the drafter has run in a step."""

    num_read: int = 0
    num_growing: int = 0
    level_rows: tuple[int, ...] = ()


class Speculation:
    """Drafts of one engine, from step to step."""

    def __init__(
        self,
        config: SmartConfig,
        table: CostTable,
        expansions: Expansions,
        max_num_seqs: int,
        max_rows: int,
        block_size: int,
        sees_arrivals: bool,
        seed: int,
    ) -> None:
        """Args:
        config: with its node budget resolved.
        table: costs that the controller starts from.
        expansions: of the drafter.
        max_num_seqs: request slots.
        max_rows: of the drafter's forwards.
        block_size: of KV blocks.
        sees_arrivals: as for `Controller`.
        seed: of the text.
        """
        self.controller = Controller(config, table, max_num_seqs, sees_arrivals=sees_arrivals)
        self._expansions, self._seed, self._max_rows = expansions, seed, max_rows
        self._backlog = Backlog(max_num_seqs, block_size, num_blocks=0)
        self._store = TreeStore(max_num_seqs, config.growth.node_budget + 1)
        self._probes = Probes()

    def add_request(self, slot: int) -> None:
        """Another request, or one that was preempted, starts in `slot`."""
        self.controller.add_request(slot)
        self._backlog.add_request(slot, 0, np.zeros(0, np.int64))

    def verify(self, slots: _Ints, num_nodes: _Ints) -> tuple[_Ints, bool]:
        """Walk the trees of some requests, and learn from them.

        Args:
            slots: [num_reqs] of the requests.
            num_nodes: [num_reqs] draft nodes that are verified.

        Returns:
            [num_reqs] nodes accepted, and whether some tree was not a chain.
        """
        num_accepted = np.zeros(len(slots), np.int64)
        has_tree = np.flatnonzero(num_nodes)
        if not len(has_tree):
            return num_accepted, False
        of_slots = slots[has_tree]
        trees = self._store.get(of_slots, num_nodes[has_tree] + 1)
        targets = np.full(trees.token.shape, TARGETS_TOKEN)
        path, num_accepted[has_tree] = walk(trees.parent, trees.token, trees.num_nodes, targets)
        is_judged = trees.is_node() & (trees.path_prob > 0)
        columns = trees.parent, trees.depth, trees.rank, trees.source, trees.draft_prob
        req, *seen, was_taken = judged_nodes(*columns, is_judged, np.ascontiguousarray(path))
        share, depth, rank, source = seen
        self.controller.acceptance.observe(share, depth, rank, source, was_taken, of_slots[req])
        return num_accepted, not bool(trees.is_chain().all())

    def begins(self, now_ms: float, shape: StepShape, has_prefill: bool, after_pause: bool) -> None:
        """A step begins, which ends the one before: the controller learns what that took."""
        self.controller.clock.begins(now_ms / 1e3, shape, has_prefill, after_pause)

    def propose(self, of: Emitting, load: StepLoad, prompt_rows: _Ints) -> tuple[Drafted, _Ints]:
        """Decide who drafts, and grow trees.

        Args:
            of: the step's requests.
            load: of the step to come, as far as a worker knows it.
            prompt_rows: [num_reqs] of prompts that the present step computes.

        Returns:
            What the drafter has run, and [num_reqs] draft nodes of each request.
        """
        controller, backlog = self.controller, self._backlog
        num_nodes = np.zeros(len(of.slots), np.int64)
        num_unread = backlog.num_unread(of.slots, of.start, of.end)
        most_read = controller.most_read(backlog.capacity)
        num_prompt_rows = int(np.minimum(prompt_rows, most_read).sum())
        decision = controller.who_drafts(load, num_unread, num_prompt_rows)
        drafting = self._drafting(of, decision)
        if not len(drafting):
            controller.clock.rested()
            return Drafted(), num_nodes
        slots, useful_depth = of.slots[drafting], of.tokens_left[drafting] - 1
        unread = backlog.unread(slots, of.start[drafting], of.end[drafting])
        emits = of.emits[drafting] & (useful_depth > 0)
        grows, num_read = np.flatnonzero(emits), len(unread.req)
        limits = controller.limits
        pool = CandidatePool(
            len(slots),
            limits,
            lambda prob, depth, req: controller.accept(prob, depth, slots[req]),
            controller.value_of(slots),
        )
        spent_ms = controller.overhead_ms(load.num_requests, drafts=True)
        spent_ms += controller.read_ms(unread.num_from(of.root[drafting]), len(grows))
        levels = PolicyLevels(controller.policy, load, spent_ms, controller.acceptance.mean_by_rank)
        bounds = GrowthBounds(
            useful_depth,
            np.full(len(slots), limits.node_budget * limits.depth),
            self._max_rows // len(slots),
        )
        requests, end = of.requests[drafting], of.end[drafting]
        source = SimulatedSource(self._expansions, max(limits.children, 1), self._seed, requests, end)
        grow(pool, source, grows, bounds, levels)
        chosen = levels.choose(pool.candidates).num_draft_nodes
        least = np.where(emits, decision.least_nodes, 0)
        trees = pool.candidates.select(np.maximum(chosen, least))
        self._store.put(slots, trees)
        controller.drafted(pool.candidates, grows, levels.rows)
        controller.clock.drafted(num_read, len(grows), levels.rows)
        num_nodes[drafting] = trees.num_nodes - 1
        return Drafted(num_read, len(grows), tuple(levels.rows)), num_nodes

    def _drafting(self, of: Emitting, decision: Drafting) -> _Ints:
        """[num_drafting] indices of the requests that the drafter runs for; as `WhoDrafts` has it."""
        if decision is Drafting.NONE:
            return np.zeros(0, np.int64)
        can_read = of.end > self._backlog.read_to[of.slots]
        if decision is not Drafting.PROBE:
            return np.flatnonzero(can_read)
        return self._probes.among(np.flatnonzero(can_read & of.emits))
