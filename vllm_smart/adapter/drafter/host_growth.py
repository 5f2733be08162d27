"""Growing trees with their candidates on the host, which waits for the drafter at every level.

What runs on CPUs; on GPUs only for policies that `device_growth` does not decide on the device.
"""

import numpy as np
import torch

from vllm_smart.adapter.arrays import HostCopy, copy_to, to_device
from vllm_smart.adapter.cpu import candidates as cpu_candidates
from vllm_smart.adapter.drafter.drafter import DraftRows
from vllm_smart.adapter.drafter.growth_log import GrowthLog
from vllm_smart.adapter.drafter.level import DraftSlots, LevelRows, first_choices
from vllm_smart.adapter.drafter.reading import Reading
from vllm_smart.adapter.drafter.step import DraftingStep
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.proposer import CandidatePool


class HostGrowth:
    """Grows trees once it is known what the step has brought."""

    # Of the present step.
    _temperature: torch.Tensor  # [max_num_reqs] by request-state slot
    _feedback: torch.Tensor  # [num_rows, hidden] what the latest forward hands to its rows' children

    def __init__(self, reading: Reading, runtime: TreeRuntime) -> None:
        """Args:
        reading: brings the drafter up to the roots.
        runtime: whose controller decides.
        """
        self._reading, self._runtime = reading, runtime
        self._drafter, self._host = reading.drafter, reading.host

    def grow(
        self, step: DraftingStep, hidden_states: list[torch.Tensor], temperature: torch.Tensor
    ) -> GrowthLog:
        """Trees of some requests, of a root alone where nothing is worth verifying.

        Args:
            hidden_states: the target's, [num_tokens, hidden] each.
            temperature: [max_num_reqs] float32 by request-state slot.
        """
        self._temperature = temperature
        runtime, slots, result = self._runtime, step.slots, step.result
        reading, host = self._reading, self._host
        controller, load, drafting = runtime.controller, step.load, step.drafting
        unread = reading.unread(result, drafting)
        to_logits, self._feedback = reading.read(step.plan, result, drafting, unread, hidden_states)
        useful_depth = reading.useful_depth(slots, result.end[drafting])
        grows = np.flatnonzero(result.emits[drafting] & (useful_depth > 0))
        pool = runtime.new_pool(slots)
        first_level = to_logits[to_device(grows, host.device)]
        self._add_children(pool, grows, np.zeros_like(grows), slots, first_level)

        prefix_end = reading.readable_end(result)[drafting]
        log = GrowthLog(
            drafting=step.decision,
            indices=drafting,
            load=load,
            pool=pool,
            grows=grows,
            useful_depth=useful_depth,
            capacity=np.minimum(host.num_speculative_steps - 1, host.max_model_len - prefix_end),
            num_read=len(unread.req),
            overhead_ms=controller.overhead_ms(load.num_requests, drafts=True),
            read_ms=controller.read_ms(len(unread.req), len(grows)),
            # One level's rows of all requests must fit the drafter's input buffers.
            max_width=host.max_num_tokens // len(slots),
        )
        window_start = reading.backlog.window_start[slots]
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
        prob = first_choices(prob, self._runtime.terms.chain_only[row_slots])
        pool.add_children(req, parent, token, prob)
        self._runtime.controller.saw_level(pool.num_levels, pool.parent_mass, pool.child_mass)

    def _likeliest(self, to_logits: torch.Tensor, slots: np.ndarray) -> list[np.ndarray]:
        """`Drafter.candidates_after` rows of the requests in `slots`, on the host."""
        host, num = self._host, max(1, self._runtime.limits.children)
        of_rows = to_device(slots, host.device)
        if host.device.type == "cpu" and len(slots) * host.vocab_size <= cpu_candidates.MOST_LOGITS:
            logits = host.compute_draft_logits(to_logits, 0)
            return [*cpu_candidates.top_candidates(logits, of_rows, self._temperature, num)]
        after = self._drafter.candidates_after(to_logits, self._temperature[of_rows], num)
        return HostCopy(*after).wait()

    def _grow_levels(self, log: GrowthLog, draft_slots: DraftSlots, slots: np.ndarray) -> None:
        """Draft further levels while they are worth their forward.

        Args:
            slots: [num_reqs] request-state slots.
        """
        controller, pool, limits = self._runtime.controller, log.pool, self._runtime.limits
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
        rows, num_rows, host = level.attention, len(level.token), self._host
        copy_to(host.input_buffers.input_ids[:num_rows], level.token)
        copy_to(host.input_buffers.positions[:num_rows], level.position)
        to_logits, self._feedback = self._drafter.run_rows(
            DraftRows(
                to_device(level.slot_position, host.device),
                to_device(rows.query_start_loc, host.device),
            ),
            self._feedback[to_device(level.source, host.device)],
            lambda builder, table: builder.tree_metadata(rows, table),
            host.graph_for(num_rows),
        )
        return to_logits
