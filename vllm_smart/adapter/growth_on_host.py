"""Growing trees with their candidates on the host, which waits for the drafter at every level.

What runs on CPUs; on GPUs only for policies that `cuda.growth` does not decide on the device.
"""

import numpy as np
import torch

from vllm_smart.adapter.arrays import HostCopy, copy_to, to_device
from vllm_smart.adapter.cpu import candidates as cpu_candidates
from vllm_smart.adapter.drafting_step import DraftingStep
from vllm_smart.adapter.growth import DraftRows, TreeGrowing
from vllm_smart.adapter.growth_log import GrowthLog
from vllm_smart.adapter.level import DraftSlots, LevelRows, first_choices
from vllm_smart.proposer import CandidatePool


class HostGrowth(TreeGrowing):
    """Grows trees once it is known what the step has brought."""

    def grow_on_host(self, step: DraftingStep, hidden_states: list[torch.Tensor]) -> GrowthLog:
        """Trees of some requests, of a root alone where nothing is worth verifying.

        Args:
            hidden_states: the target's, [num_tokens, hidden] each.
        """
        runtime, slots, result = self.runtime, step.slots, step.result
        controller, load, drafting = runtime.controller, step.load, step.drafting
        unread = self.unread(result, drafting)
        to_logits = self.read(step.plan, result, drafting, unread, hidden_states)
        useful_depth = self.useful_depth(slots, result.end[drafting])
        grows = np.flatnonzero(result.emits[drafting] & (useful_depth > 0))
        pool = runtime.new_pool(slots)
        first_level = to_logits[to_device(grows, self.device)]
        self._add_children(pool, grows, np.zeros_like(grows), slots, first_level)

        prefix_end = self.readable_end(result)[drafting]
        log = GrowthLog(
            drafting=step.decision,
            indices=drafting,
            load=load,
            pool=pool,
            grows=grows,
            useful_depth=useful_depth,
            capacity=np.minimum(self.num_speculative_steps - 1, self.max_model_len - prefix_end),
            num_read=len(unread.req),
            overhead_ms=controller.overhead_ms(load.num_requests, drafts=True),
            read_ms=controller.read_ms(len(unread.req), len(grows)),
            # One level's rows of all requests must fit the drafter's input buffers.
            max_width=self.max_num_tokens // len(slots),
        )
        window_start = self.backlog.window_start[slots]
        draft_slots = DraftSlots(prefix_end, log.capacity, pool.path_prob.shape[1], window_start)
        self._grow_levels(log, draft_slots, slots)
        log.allocation = controller.policy.choose(pool, load, log.spent_ms)
        log.trees = pool.select(np.maximum(log.allocation.num_draft_nodes, step.least_nodes))
        return log

    def _add_children(
        self,
        pool: CandidatePool,
        req: np.ndarray,
        parent: np.ndarray,
        slots: np.ndarray,
        to_logits: torch.Tensor,
    ) -> None:
        """Add the likeliest tokens after some nodes to `pool`.

        Args:
            req: [num_rows] ascending.
            parent: [num_rows] the nodes, as pool ids.
            slots: [num_reqs] request-state slots.
            to_logits: [num_rows, hidden].
        """
        if not len(req):
            return
        row_slots = slots[req]
        token, prob = self._likeliest(to_logits, row_slots)
        prob = first_choices(prob, self.runtime.terms.chain_only[row_slots])
        pool.add_children(req, parent, token, prob)
        self.runtime.controller.saw_level(pool.num_levels, pool.parent_mass, pool.child_mass)

    def _likeliest(self, to_logits: torch.Tensor, slots: np.ndarray) -> list[np.ndarray]:
        """`candidates_after` rows of the requests in `slots`, on the host."""
        of_rows = to_device(slots, self.device)
        if self.device.type == "cpu" and len(slots) * self.vocab_size <= cpu_candidates.MOST_LOGITS:
            logits = self.compute_draft_logits(to_logits, 0)
            num = max(1, self.runtime.limits.children)
            return [*cpu_candidates.top_candidates(logits, of_rows, self.temperature_now, num)]
        return HostCopy(*self.candidates_after(to_logits, self.temperature_now[of_rows])).wait()

    def _grow_levels(self, log: GrowthLog, draft_slots: DraftSlots, slots: np.ndarray) -> None:
        """Draft further levels while they are worth their forward.

        Args:
            slots: [num_reqs] request-state slots.
        """
        controller, pool, limits = self.runtime.controller, log.pool, self.runtime.limits
        width = min(limits.width, log.max_width)
        for depth in range(1, limits.depth):
            growing = log.useful_depth > depth
            frontier = pool.frontier(np.minimum(width, draft_slots.free()), active=growing)
            if not len(frontier.req):
                break
            log.child_acceptance.append(controller.acceptance.mean_by_rank(depth + 1))
            expanded, level_ms = controller.policy.level(
                pool, frontier, log.child_acceptance[-1], log.load, log.spent_ms
            )
            if not expanded.any():
                break
            frontier = frontier.only(expanded)
            log.levels_ms += level_ms
            log.level_rows.append(len(frontier.req))
            to_logits = self._run_level(draft_slots.take(pool, frontier))
            self._add_children(pool, frontier.req, frontier.node, slots, to_logits)

    def _run_level(self, level: LevelRows) -> torch.Tensor:
        """Run the drafter on a level's rows: [num_rows, hidden] to compute logits from."""
        rows, num_rows = level.attention, len(level.token)
        assert self.feedback is not None
        copy_to(self.input_buffers.input_ids[:num_rows], level.token)
        copy_to(self.input_buffers.positions[:num_rows], level.position)
        to_logits, self.feedback = self.run_rows(
            DraftRows(
                to_device(level.slot_position, self.device),
                to_device(rows.query_start_loc, self.device),
            ),
            self.feedback[to_device(level.source, self.device)],
            lambda builder, table: builder.tree_metadata(rows, table),
            self.graph_for(num_rows),
        )
        return to_logits
