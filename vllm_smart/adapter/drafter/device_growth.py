"""Growing and choosing trees on the device: everything is queued, nothing is waited for.

How many levels a step drafts and how many rows each has is decided on the host beforehand, from what
the step before has promised (`log`); whose rows they are, what is verified of the candidates and
everything else that depends on this step's samples is decided on the device. Between reading and the
host's copies there are only replays of graphs, where they could be captured.
"""

import numpy as np
import torch

from vllm_smart.adapter.drafter.device_reading import DeviceReading
from vllm_smart.adapter.drafter.growth_graphs import GrowthGraph, GrowthPart
from vllm_smart.adapter.drafter.growth_parts import GrowthParts
from vllm_smart.adapter.drafter.request_ends import RequestEnds
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.growth.drafting_step import DraftingStep
from vllm_smart.growth.grown import GrownTrees
from vllm_smart.growth.inputs import HostInputs
from vllm_smart.growth.log import GrowthLog
from vllm_smart.proposer import CandidatePool, GrowthBounds, LevelPlan, RecordedSource, grow
from vllm_smart.scheduler import PolicyLevels
from vllm_smart.seams.host import runs_on_triton
from vllm_smart.step import StepResult

if runs_on_triton():
    from vllm_smart.kernels.grow.gpu import settle


class DeviceGrowth:
    """Grows trees while the host does not know yet what the step has brought."""

    def __init__(self, reading: DeviceReading, runtime: TreeRuntime, ends: RequestEnds) -> None:
        """Args:
        reading: brings the drafter up to the roots.
        runtime: whose controller decides.
        ends: where requests end.
        """
        self._ends = ends
        self._reading, self._runtime, self._host = reading, runtime, reading.host
        self.parts = GrowthParts(reading.drafter, runtime)
        self.level_plan = LevelPlan()

    def grow(
        self,
        step: DraftingStep,
        hidden_states: list[torch.Tensor],
        temperature: torch.Tensor,
        num_rejected: torch.Tensor,
    ) -> GrownTrees:
        """Trees of some requests, of a root alone where nothing is worth verifying.

        Args:
            step: its result is the most that the step may bring.
            hidden_states: the target's, [num_tokens, hidden] each.
            temperature: [max_num_reqs] float32 by request-state slot.
            num_rejected: [num_reqs] int32 nodes that the walk did not take.
        """
        reading, host = self._reading, self._host
        num_reqs, state = len(step.drafting), self.parts.state()
        unread = reading.unread(step.result, step.drafting)
        num_usual = unread.num_from(step.plan.root_pos[step.drafting])
        grown = self._planned(step, len(unread.req), num_usual)
        inputs = HostInputs.of(
            step,
            self._runtime.controller,
            self._runtime.terms,
            state.sizes.reqs(num_reqs),
            grown.depth_left,
            reading.backlog.window_start[step.slots],
            grown.spent_ms,
            None if self._runtime.noise is None else self._runtime.noise.of_requests(step.slots),
        ).send(state.mailbox)
        settle(
            num_rejected,
            temperature,
            inputs.req,
            inputs.slot,
            inputs.emits,
            inputs.end,
            inputs.useful_depth,
            inputs.prefix_end,
            inputs.temperature,
            # A drafter that needs no hidden states reads the bonus token, too.
            reads_bonus=host.token_shift == 0,
            max_len=host.max_model_len,
        )
        reading.read_ahead(
            step,
            unread,
            hidden_states,
            inputs.prefix_end[:num_reqs],
            state.to_logits[:num_reqs],
            state.feedback[:num_reqs],
        )

        longest = int(reading.readable_end(step.result)[step.drafting].max())
        longest += host.num_speculative_steps
        padded_reqs = len(inputs.req)
        choose = GrowthPart.CHOOSE_BEST if grown.policy.weighs_costs else GrowthPart.CHOOSE_ALL
        graphs = [GrowthGraph.of(GrowthPart.ROOTS, padded_reqs, padded_reqs)]
        graphs += [GrowthGraph.of(GrowthPart.LEVEL, padded_reqs, rows) for rows in grown.level_rows]
        graphs += [GrowthGraph.of(choose, padded_reqs, padded_reqs)]
        for graph in graphs:
            self.parts.run(graph, inputs, longest)
        grown.copy_to_host(state, inputs.req[:num_reqs])
        return grown

    def _planned(self, step: DraftingStep, num_read: int, num_usual: int) -> GrownTrees:
        """What is going to be drafted, by what the step before has promised."""
        controller, limits = self._runtime.controller, self._runtime.limits
        most_slots, sizes = self._host.num_speculative_steps - 1, self.parts.state().sizes
        num_reqs = len(step.drafting)
        # One level's rows of all requests must fit the drafter's input buffers.
        max_width = min(limits.width, self._host.max_num_tokens // num_reqs)
        num_growing = int(np.count_nonzero(step.result.emits[step.drafting]))
        planned = self.level_plan.level_rows(
            controller.policy, limits, num_growing, max_width, most_slots
        )
        level_rows = [sizes.rows(sizes.reqs(num_reqs), num_rows) for num_rows in planned]
        return GrownTrees(
            step=step,
            policy=controller.policy,
            num_read=num_read,
            num_usual=num_usual,
            most_slots=most_slots,
            max_width=max_width,
            depth_left=self._ends.useful_depth(step.slots, step.scheduled_end),
            level_rows=level_rows,
            overhead_ms=controller.overhead_ms(step.load.num_requests, drafts=True),
            read_ms=controller.read_ms(num_usual, num_growing),
            levels_ms=sum(map(controller.draft_ms, level_rows)),
        )

    def log(self, grown: GrownTrees, result: StepResult) -> GrowthLog:
        """What the trees of a step were grown from, once it is known what the step has brought.

        Asks the policy how it would have grown them; the next step's levels follow it. By what was
        known when the trees were grown: nothing may have been learnt of the step yet.
        """
        runtime, step, policy = self._runtime, grown.step, grown.policy
        controller, slots = runtime.controller, step.slots
        end = self._reading.readable_end(result)[step.drafting]
        bounds = GrowthBounds(
            useful_depth=grown.depth_left + step.scheduled_end - result.end[step.drafting],
            most_rows=np.minimum(grown.most_slots, self._host.max_model_len - end),
            max_width=grown.max_width,
        )
        grows = np.flatnonzero(result.emits[step.drafting] & (bounds.useful_depth > 0))
        candidates = grown.candidates(controller.value_of(slots), runtime.terms.max_nodes_of(slots))
        levels = PolicyLevels(
            policy,
            step.load,
            grown.overhead_ms + grown.read_ms,
            controller.acceptance.mean_by_rank,
        )
        if len(grows) and (policy.weighs_costs or runtime.is_tracing):
            pool = CandidatePool.hiding(candidates, runtime.limits)
            source = RecordedSource(candidates, runtime.limits.children)
            grow(pool, source, grows, bounds, levels)
        if len(grows) and policy.weighs_costs:
            self.level_plan = LevelPlan(policy, tuple(rows / len(grows) for rows in levels.asked))
        allocation = None
        if runtime.is_tracing or policy.remembers_choices:
            allocation = policy.choose(candidates, step.load, grown.spent_ms)
        return GrowthLog(
            drafting=step.decision,
            indices=step.drafting,
            load=step.load,
            candidates=candidates,
            grows=grows,
            bounds=bounds,
            num_read=grown.num_read,
            num_usual=grown.num_usual,
            level_rows=grown.level_rows,
            child_acceptance=levels.child_acceptance,
            spent_ms=grown.spent_ms,
            allocation=allocation,
            trees=grown.trees,
            is_coupled=runtime.is_coupled(slots),
        )
