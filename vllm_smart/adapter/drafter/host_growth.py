"""Growing trees with their candidates on the host, which waits for the drafter at every level.

What runs on CPUs; on GPUs only for policies that `device_growth` does not decide on the device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vllm_smart.adapter.drafter.drafter import DraftRows
from vllm_smart.adapter.drafter.reading import Reading
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.arrays import HostCopy, copy_to, to_device
from vllm_smart.growth.drafting_step import DraftingStep
from vllm_smart.growth.level import DraftSlots, LevelRows, first_choices
from vllm_smart.growth.log import GrowthLog
from vllm_smart.kernels.top_tokens import cpu as on_cpu
from vllm_smart.proposer import (
    CandidatePool,
    CandidateSource,
    Frontier,
    GrowthBounds,
    GrowthWork,
    InStep,
    Placement,
)
from vllm_smart.scheduler import PolicyLevels


@dataclass(frozen=True)
class SourceContext:
    """What a source may know of the step whose candidates it makes; of the requests that draft."""

    step: DraftingStep
    reading: Reading  # that has brought the drafter up to the roots
    draft_slots: DraftSlots  # where the drafter keeps what it computes
    prefix_end: np.ndarray  # [num_drafting] position after the last one that the drafter has read
    chain_only: np.ndarray  # [num_drafting] bool, requests that may have but one candidate a level
    temperature: torch.Tensor  # [max_num_reqs] float32 by request-state slot
    to_logits: torch.Tensor  # [num_drafting, hidden] what the roots' candidates are computed from
    feedback: torch.Tensor  # [num_drafting, hidden] what the roots hand to their children


class HostGrowth:
    """Grows trees once it is known what the step has brought.

    Attributes:
        make_source: makes the source of a step's candidates: the drafter's.
        placement: where and when they are made: at once.
    """

    def __init__(self, reading: Reading, runtime: TreeRuntime) -> None:
        """Args:
        reading: brings the drafter up to the roots.
        runtime: whose controller decides.
        """
        self._reading, self._runtime = reading, runtime
        self.make_source: Callable[[SourceContext], CandidateSource] = ModelSource
        self.placement: Placement = InStep()

    def grow(
        self, step: DraftingStep, hidden_states: list[torch.Tensor], temperature: torch.Tensor
    ) -> GrowthLog:
        """Trees of some requests, of a root alone where nothing is worth verifying.

        Args:
            hidden_states: the target's, [num_tokens, hidden] each.
            temperature: [max_num_reqs] float32 by request-state slot.
        """
        runtime, slots, result = self._runtime, step.slots, step.result
        reading, host = self._reading, self._reading.host
        controller, load, drafting = runtime.controller, step.load, step.drafting
        unread = reading.unread(result, drafting)
        to_logits, feedback = reading.read(step.plan, result, drafting, unread, hidden_states)
        prefix_end = reading.readable_end(result)[drafting]
        bounds = GrowthBounds(
            useful_depth=reading.useful_depth(slots, result.end[drafting]),
            most_rows=np.minimum(host.num_speculative_steps - 1, host.max_model_len - prefix_end),
            # One level's rows of all requests must fit the drafter's input buffers.
            max_width=host.max_num_tokens // len(slots),
        )
        grows = np.flatnonzero(result.emits[drafting] & (bounds.useful_depth > 0))
        pool = runtime.new_pool(slots)
        room, window_start = pool.candidates.token.shape[1], reading.backlog.window_start[slots]
        context = SourceContext(
            step=step,
            reading=reading,
            draft_slots=DraftSlots(prefix_end, bounds.most_rows, room, window_start),
            prefix_end=prefix_end,
            chain_only=runtime.terms.chain_only[slots],
            temperature=temperature,
            to_logits=to_logits,
            feedback=feedback,
        )
        spent_ms = controller.overhead_ms(load.num_requests, drafts=True)
        spent_ms += controller.read_ms(len(unread.req), len(grows))
        levels = PolicyLevels(controller.policy, load, spent_ms, controller.acceptance.mean_by_rank)
        work = GrowthWork(pool, self.make_source(context), grows, bounds, levels)
        candidates = self.placement.collect(self.placement.submit(work))
        allocation = levels.choose(candidates)
        num_nodes = np.maximum(allocation.num_draft_nodes, step.least_nodes)
        return GrowthLog(
            drafting=step.decision,
            indices=drafting,
            load=load,
            candidates=candidates,
            grows=grows,
            bounds=bounds,
            num_read=len(unread.req),
            level_rows=levels.rows,
            child_acceptance=levels.child_acceptance,
            spent_ms=levels.spent_ms,
            allocation=allocation,
            trees=candidates.select(num_nodes),
        )


class ModelSource:
    """The drafter's likeliest tokens, a forward per level; of one step."""

    name, is_one_shot = "model", False

    def __init__(self, context: SourceContext) -> None:
        """Args:
        context: of the step.
        """
        self._drafter, self._host = context.reading.drafter, context.reading.host
        self._context, self._slots = context, context.step.slots
        self._feedback = context.feedback  # of the latest forward, to its rows' children

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        """Add the likeliest tokens after some nodes; see `CandidateSource`."""
        if not len(frontier.req):
            return 0
        context = self._context
        if pool.num_levels:
            to_logits = self._run(context.draft_slots.take(pool.candidates, frontier))
        else:
            to_logits = context.to_logits[to_device(frontier.req, self._host.device)]
        children = max(1, pool.limits.children)
        token, prob = self._likeliest(to_logits, self._slots[frontier.req], children)
        prob = first_choices(prob, context.chain_only[frontier.req])
        pool.add_children(frontier.req, frontier.node, token, prob)
        return len(frontier.req)

    def _likeliest(self, to_logits: torch.Tensor, slots: np.ndarray, children: int) -> list[np.ndarray]:
        """`Drafter.candidates_after` rows of the requests in `slots`, on the host."""
        host, temperature = self._host, self._context.temperature
        of_rows = to_device(slots, host.device)
        if host.device.type == "cpu" and len(slots) * host.vocab_size <= on_cpu.MOST_LOGITS:
            logits = host.compute_draft_logits(to_logits, 0)
            return [*on_cpu.top_candidates(logits, of_rows, temperature, children)]
        after = self._drafter.candidates_after(to_logits, temperature[of_rows], children)
        return HostCopy(*after).wait()

    def _run(self, level: LevelRows) -> torch.Tensor:
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
