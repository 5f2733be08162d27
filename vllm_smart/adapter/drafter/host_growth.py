"""Growing trees with their candidates on the host, which waits for the drafter at every level.

What runs on CPUs; on GPUs only for policies that `device_growth` does not decide on the device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vllm_smart.adapter.drafter.model_source import ModelSource, SourceContext
from vllm_smart.adapter.drafter.reading import Reading
from vllm_smart.adapter.drafter.request_ends import RequestEnds
from vllm_smart.adapter.ngrams import is_sampled
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.growth.drafting_step import DraftingStep
from vllm_smart.growth.level import DraftSlots
from vllm_smart.growth.log import GrowthLog
from vllm_smart.proposer import (
    CandidatePool,
    CandidateSource,
    EvidencePool,
    Frontier,
    GrowthBounds,
    GrowthWork,
    InStep,
    Placement,
    StepGrammars,
)
from vllm_smart.scheduler import Choice, Drafting, PolicyLevels, usable_probs

_NOBODY = np.zeros(0, np.int64)


@dataclass(frozen=True)
class DrafterPart:
    """The drafter's part of a step's growth, once it has read up to the roots."""

    source: CandidateSource
    grows: np.ndarray  # [num_growing] requests that have candidates of it
    bounds: GrowthBounds
    num_read: int
    num_usual: int  # of these, what the step itself has brought
    read_ms: float  # predicted, of these alone


class HostGrowth:
    """Grows trees once it is known what the step has brought.

    Attributes:
        make_source: makes the source of a step's drafted candidates.
        placement: where and when these are made: at once.
        is_beside: whether the drafter runs while the target does.
    """

    is_beside = False

    def __init__(self, reading: Reading | None, runtime: TreeRuntime, ends: RequestEnds) -> None:
        """Args:
        reading: brings the drafter up to the roots; None without a drafter.
        runtime: whose controller decides.
        ends: where requests end.
        """
        self._reading, self._runtime, self._ends = reading, runtime, ends
        self.make_source: Callable[[SourceContext], CandidateSource] = ModelSource
        self.placement: Placement = InStep()

    def grow(
        self, step: DraftingStep, hidden_states: list[torch.Tensor], temperature: torch.Tensor
    ) -> GrowthLog:
        """Trees of some requests, of a root alone where nothing is worth verifying.

        N-grams come first, as they cost no forward: a level of the drafter pays for what it adds.

        Args:
            hidden_states: the target's, [num_tokens, hidden] each.
            temperature: [max_num_reqs] float32 by request-state slot.
        """
        runtime, slots, load = self._runtime, step.slots, step.load
        controller, decision = runtime.controller, step.decision
        useful_depth = self._ends.useful_depth(slots, step.result.end[step.growing])
        emits = step.result.emits[step.growing] & (useful_depth > 0)
        # Known on the host where n-grams are.
        sampled = is_sampled(temperature, slots) if runtime.ngrams is not None else None
        pool, undrafted = runtime.new_pool(slots, sampled), None
        grammars = runtime.step_grammars(slots, step.result.end[step.growing], emits, useful_depth)
        if runtime.looks_up:
            self._add_ngrams(step, pool, emits, useful_depth, grammars)
        grammars.visit(pool, Frontier.of_roots(np.flatnonzero(emits), len(emits)))
        if runtime.looks_up or (pool.candidates.size > 1).any():
            undrafted = usable_probs(pool.candidates, controller.limits)
        without: Choice | None = None
        drafter: DrafterPart | None = None
        drafts = len(step.drafting) > 0
        if drafts and decision is Drafting.ALL:
            without = controller.without_drafter(pool.candidates, load)
            if without is not None and controller.does_without(without, load):
                without, drafts, decision = None, False, Drafting.NONE
                assert self._reading is not None
                self._reading.keep_unread(step.plan, step.result, _NOBODY, hidden_states)
        spent_ms = controller.overhead_ms(load.num_requests, drafts)
        if drafts:
            drafter = self.drafter_part(
                step, pool, emits, useful_depth, hidden_states, temperature, grammars
            )
            spent_ms += drafter.read_ms
        levels = PolicyLevels(controller.policy, load, spent_ms, controller.acceptance.mean_by_rank)
        candidates, least = pool.candidates, np.zeros(len(slots), np.int64)
        if drafter is not None:
            work = GrowthWork(pool, drafter.source, drafter.grows, drafter.bounds, levels, grammars)
            candidates = self.placement.collect(self.placement.submit(work))
            least[step.drafting_rows] = step.decision.least_nodes
        grammars.finish()
        allocation = levels.choose(candidates)
        trees = candidates.select(np.maximum(allocation.num_draft_nodes, least))
        if runtime.ngrams is not None and runtime.looks_up:
            runtime.ngrams.keep(step.result, step.growing, candidates)
            beyond = None if drafts else controller.beyond_plain(load, allocation.choice)
            runtime.ngrams.chosen(trees, beyond)
        return GrowthLog(
            drafting=decision,
            indices=step.growing,
            load=load,
            candidates=candidates,
            grows=drafter.grows if drafter is not None else np.zeros(0, np.int64),
            bounds=drafter.bounds if drafter is not None else _no_rows(useful_depth),
            num_read=drafter.num_read if drafter is not None else 0,
            num_usual=drafter.num_usual if drafter is not None else 0,
            level_rows=levels.rows,
            child_acceptance=levels.child_acceptance,
            spent_ms=levels.spent_ms,
            allocation=allocation,
            trees=trees,
            undrafted=undrafted,
            without=without,
            is_coupled=runtime.is_coupled(slots),
            is_beside=self.is_beside,
        )

    def _add_ngrams(
        self,
        step: DraftingStep,
        pool: CandidatePool,
        emits: np.ndarray,
        useful_depth: np.ndarray,
        grammars: StepGrammars,
    ) -> None:
        ngrams = self._runtime.ngrams
        assert ngrams is not None
        assert isinstance(pool, EvidencePool)
        known = step.result.end[step.growing] + 1
        source = ngrams.source(step.slots, known, useful_depth, grammars)
        source.expand(pool, Frontier.of_roots(np.flatnonzero(emits), len(emits)))

    def drafter_part(
        self,
        step: DraftingStep,
        pool: CandidatePool,
        emits: np.ndarray,
        useful_depth: np.ndarray,
        hidden_states: list[torch.Tensor],
        temperature: torch.Tensor,
        grammars: StepGrammars,
    ) -> DrafterPart:
        """Have the drafter read what it has not seen of the requests that it runs for."""
        reading, runtime, slots, result = self._reading, self._runtime, step.slots, step.result
        assert reading is not None
        host, drafting, rows = reading.host, step.drafting, step.drafting_rows
        unread = reading.unread(result, drafting)
        to_logits, feedback = reading.read(step.plan, result, drafting, unread, hidden_states)
        prefix_end = reading.readable_end(result)[step.growing]
        room = reading.level_room(prefix_end)
        most_rows = np.zeros_like(room)
        most_rows[rows] = room[rows]
        bounds = GrowthBounds(
            useful_depth=np.minimum(useful_depth, reading.deepest(slots)),
            most_rows=most_rows,
            # One level's rows of all requests must fit the drafter's input buffers.
            max_width=host.max_num_tokens // len(rows),
        )
        grows = rows[emits[rows]]
        size, window_start = pool.candidates.token.shape[1], reading.backlog.window_start[slots]
        context = SourceContext(
            step=step,
            reading=reading,
            draft_slots=DraftSlots(prefix_end, most_rows, size, window_start, rows, host.keeps_cache),
            chain_only=runtime.terms.chain_only[slots],
            temperature=temperature,
            noise=runtime.noise,
            grammars=grammars,
            to_logits=to_logits,
            feedback=feedback,
        )
        num_more = reading.num_more_rows(len(grows))
        num_usual = unread.num_from(step.plan.root_pos[drafting]) + num_more
        read_ms = runtime.controller.read_ms(num_usual, len(grows))
        source, num_read = self.make_source(context), len(unread.req) + num_more
        return DrafterPart(source, grows, bounds, num_read, num_usual, read_ms)


def _no_rows(useful_depth: np.ndarray) -> GrowthBounds:
    """Bounds of a step in which the drafter does not run."""
    return GrowthBounds(useful_depth, np.zeros_like(useful_depth), 0)
