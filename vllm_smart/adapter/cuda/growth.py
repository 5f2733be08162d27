"""Growing and choosing trees on the device: everything is queued, nothing is waited for.

How many levels a step drafts and how many rows each has is decided on the host beforehand, from what
the step before has promised (`replay`); whose rows they are, what is verified of the candidates and
everything else that depends on this step's samples is decided on the device.
"""

import numpy as np
import torch

from vllm_smart.adapter.arrays import to_device
from vllm_smart.adapter.cuda.drafting_requests import DraftingRequests
from vllm_smart.adapter.cuda.grown import GrownTrees, LevelPlan
from vllm_smart.adapter.drafting_step import DraftingStep, StepOutcome
from vllm_smart.adapter.growth import DraftRows, TreeGrowing
from vllm_smart.adapter.step_plan import StepPlan
from vllm_smart.kernels.torch_draft_rows import DeviceDraftSlots, DeviceLevel
from vllm_smart.kernels.torch_growth import DeviceCandidates, Frontier
from vllm_smart.kernels.torch_select import (
    Selection,
    StepPromise,
    select_all,
    select_nodes,
)
from vllm_smart.scheduler import DeviceRule, StepPrices


class DeviceGrowth(TreeGrowing):
    """Grows trees while the host does not know yet what the step has brought."""

    level_plan = LevelPlan()
    _candidates: DeviceCandidates | None = None

    def grow_on_device(
        self, step: DraftingStep, hidden_states: list[torch.Tensor], num_rejected: torch.Tensor
    ) -> GrownTrees:
        """Trees of some requests, of a root alone where nothing is worth verifying.

        Args:
            step: its result is the most that the step may bring.
            hidden_states: the target's, [num_tokens, hidden] each.
            num_rejected: [num_reqs] int32 nodes that the walk did not take.
        """
        depth_left = self.useful_depth(step.slots, step.scheduled_end)
        requests = DraftingRequests.of(step, self.runtime, depth_left, num_rejected)
        # A drafter that needs no hidden states reads the bonus token, too.
        bonus = requests.emits if self.token_shift == 0 else 0
        prefix_end = (requests.end + bonus).clamp(max=self.max_model_len)
        to_logits, num_read = self.read(
            step.plan, step.result, step.drafting, hidden_states, prefix_end
        )
        grown = self._planned(step, requests.req, depth_left, num_read)
        candidates = self._room_for_candidates()
        frontier = candidates.begin((requests.emits > 0) & (requests.useful_depth > 0))
        every = torch.arange(len(step.drafting), device=self.device)
        self._add_level(0, requests, frontier, every, every.unsqueeze(1), to_logits)
        row_counts = self._queue_levels(grown, requests, prefix_end)
        selection = self._select(candidates, requests, grown)
        grown.copy_to_host(candidates, candidates.trees(selection), row_counts)
        grown.touched = self.take_touched()
        return grown

    def _planned(
        self, step: DraftingStep, req: torch.Tensor, depth_left: np.ndarray, num_read: int
    ) -> GrownTrees:
        """What is going to be drafted, by what the step before has promised."""
        controller, limits = self.runtime.controller, self.runtime.limits
        most_slots = self.num_speculative_steps - 1
        # One level's rows of all requests must fit the drafter's input buffers.
        max_width = min(limits.width, self.max_num_tokens // len(step.drafting))
        num_growing = int(np.count_nonzero(step.result.emits[step.drafting]))
        level_rows = self.level_plan.level_rows(
            controller.policy, limits, num_growing, max_width, most_slots
        )
        return GrownTrees(
            step=step,
            req=req,
            policy=controller.policy,
            num_read=num_read,
            most_slots=most_slots,
            max_width=max_width,
            depth_left=depth_left,
            level_rows=level_rows,
            overhead_ms=controller.overhead_ms(step.load.num_requests, drafts=True),
            read_ms=controller.read_ms(num_read, num_growing),
            levels_ms=sum(map(controller.draft_ms, level_rows)),
        )

    def _queue_levels(
        self, grown: GrownTrees, requests: DraftingRequests, prefix_end: torch.Tensor
    ) -> list[torch.Tensor]:
        """Draft the levels planned; returns the rows of the requests in each, [num_drafting]."""
        assert self._candidates is not None
        slots = DeviceDraftSlots(
            prefix_end,
            (self.max_model_len - prefix_end).clamp(max=grown.most_slots),
            grown.most_slots,
            to_device(self.backlog.window_start[grown.step.slots], self.device),
        )
        row_counts = []
        for level, num_rows in enumerate(grown.level_rows):
            active = requests.useful_depth > level + 1
            rows = slots.take(self._candidates, level, active, requests.terms.weight, num_rows)
            to_logits = self._queue_level(rows, grown.step)
            self._add_level(level + 1, requests, rows.frontier, rows.req, rows.row, to_logits)
            row_counts.append(rows.row_start.diff())
        return row_counts

    def learn_from_device(self, outcome: StepOutcome, grown: GrownTrees) -> None:
        """What the host does at once where it decides itself, a step late."""
        result = outcome.result
        # Before anything else is learnt: by what was known when the trees were grown.
        log, self.level_plan = grown.replay(self.runtime, result, self)
        self.runtime.verified(outcome.plan, result, outcome.last_sampled)
        self.finish(grown.step, result, log, grown.touched)

    def target_rows(self, plan: StepPlan, req: np.ndarray, position: np.ndarray) -> torch.Tensor:
        """[n] rows of the target's step that have computed positions [n] of requests [n].

        Beyond a path's end the root's, whose hidden states nobody reads there.
        """
        if plan.walk is None or not self.runtime.decides_on_device:
            return super().target_rows(plan, req, position)
        numbers = np.stack((req, plan.root_row[req], position - plan.root_pos[req]))
        req_, root_row, offset = to_device(numbers.astype(np.int64), self.device)
        node = plan.walk.path[req_, offset.clamp(min=0)].clamp(min=0)
        return root_row + torch.where(offset > 0, node, offset)

    def _room_for_candidates(self) -> DeviceCandidates:
        limits, known = self.runtime.limits, self._candidates
        shape = limits.depth, limits.width, limits.children
        if known is None or shape != (known.depth, known.width, known.children):
            known = DeviceCandidates(self.max_num_reqs, *shape, self.device)
            self._candidates = known
        return known

    def _add_level(
        self,
        level: int,
        requests: DraftingRequests,
        frontier: Frontier,
        req: torch.Tensor,
        row: torch.Tensor,
        to_logits: torch.Tensor,
    ) -> None:
        """Add the likeliest tokens after the nodes of a frontier.

        Args:
            req: [num_rows] index of each row's request.
            row: [num_drafting, width] row of each frontier node.
            to_logits: [num_rows, hidden].
        """
        assert self._candidates is not None
        token, prob = self.candidates_after(to_logits, requests.slot[req])
        prob = torch.where(prob > 0, prob, 0.0)  # of NaN, too
        if requests.choices is not None:
            prob = prob * requests.choices[req]
        accept = prob
        if requests.acceptance is not None:
            accept = requests.acceptance.of_level(level, req, prob)
        is_node = (frontier.path_prob > 0).unsqueeze(2)
        prob, accept = (torch.where(is_node, each[row], 0.0) for each in (prob, accept))
        self._candidates.add_level(level, frontier, token[row], prob, accept)

    def _queue_level(self, rows: DeviceLevel, step: DraftingStep) -> torch.Tensor:
        """Run the drafter on a level's rows: [num_rows, hidden] to compute logits from."""
        max_query_len = min(len(rows.token), rows.row.shape[1])
        longest = int(self.readable_end(step.result)[step.drafting].max()) + self.num_speculative_steps
        return self.run_rows(
            DraftRows(rows.token, rows.position, rows.slot_position, rows.source, rows.row_start),
            lambda builder, table: builder.level_metadata(rows, table, max_query_len, longest),
        )

    def _select(
        self, candidates: DeviceCandidates, requests: DraftingRequests, grown: GrownTrees
    ) -> Selection:
        """What the policy would verify of the candidates."""
        controller, load = self.runtime.controller, grown.step.load
        budget, terms = self.runtime.limits.node_budget, requests.terms
        if grown.policy.device_rule is DeviceRule.ALL:
            return select_all(candidates.path_prob, budget, terms.max_nodes)
        assert controller.cost is not None
        prices = StepPrices.of(load, controller.cost, len(terms.weight) * budget)
        known = (load.num_requests, grown.spent_ms, prices.branching_ms)
        table = to_device(np.concatenate((known, prices.verify_ms)), self.device)
        branching_value = table.new_zeros((), dtype=torch.float32)
        if prices.branching_ms:
            branching_value = (candidates.off_chain() * terms.weight).amax()
        promise = StepPromise(
            num_requests=table[0],
            fixed_tokens=torch.zeros_like(requests.req[0]),  # the prices begin after them
            spent_ms=table[1],
            branching_value=branching_value,
            branching_ms=table[2],
        )
        selection = select_nodes(candidates.path_prob, budget, table[3:], promise, terms)
        least = grown.step.least_nodes
        return selection.at_least(least, terms.max_nodes) if least else selection
