"""For which requests the drafter runs in a step."""

import numpy as np
import torch

from vllm_smart.adapter.drafter.reading import DraftReading
from vllm_smart.adapter.grammars import RequestGrammars
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.growth.drafting_step import DraftingStep
from vllm_smart.scheduler import Drafting, Probes
from vllm_smart.step import StepPlan, StepResult


class WhoDrafts:
    """Asks the controller, and has kept what the requests that do not draft have computed."""

    def __init__(self, runtime: TreeRuntime, reading: DraftReading | None) -> None:
        """Args:
        runtime: whose controller decides.
        reading: what the drafter has read; None without a drafter.
        """
        self._runtime, self._reading = runtime, reading
        self._probes = Probes()

    def decide(
        self, plan: StepPlan, result: StepResult, hidden_states: list[torch.Tensor]
    ) -> DraftingStep:
        """Who drafts; of the others, what they have computed is kept until they do.

        Args:
            result: what the step has brought, or the most that it may bring.
            hidden_states: the target's, [num_tokens, hidden] each.
        """
        runtime, reading = self._runtime, self._reading
        load, nobody = runtime.load(plan, result), np.zeros(0, np.int64)
        if reading is None:
            decision, drafting = Drafting.NONE, nobody
        else:
            controller, num_unread = runtime.controller, reading.num_unread(result)
            num_prompt_rows = plan.num_prompt_rows(controller.most_read(reading.most_late))
            decision = controller.who_drafts(load, num_unread, num_prompt_rows)
            drafting = self._drafting(reading, decision, result)
            reading.keep_unread(plan, result, drafting, hidden_states)
        growing = drafting
        if runtime.looks_up:
            may = np.flatnonzero(runtime.terms.may_draft(result.slots))
            growing = may if result.emits.any() or len(drafting) else nobody
        elif runtime.grammars is not None and runtime.grammars.are_any:
            growing = np.union1d(drafting, self._forced(runtime.grammars, result))
        return DraftingStep(plan, result, drafting, growing, decision, load)

    def _forced(self, grammars: RequestGrammars, result: StepResult) -> np.ndarray:
        """Batch indices of the requests whose grammars may force tokens, with or without a drafter."""
        bound = grammars.are_bound(result.slots) & result.emits
        return np.flatnonzero(bound & self._runtime.terms.may_draft(result.slots))

    def _drafting(self, reading: DraftReading, decision: Drafting, result: StepResult) -> np.ndarray:
        """[num_drafting] batch indices of the requests that the drafter runs for, ascending."""
        if decision is Drafting.NONE:
            return np.zeros(0, np.int64)
        can_read = reading.can_read(result) & self._runtime.terms.may_draft(result.slots)
        if decision is not Drafting.PROBE:
            return np.flatnonzero(can_read)
        return self._probes.among(np.flatnonzero(can_read & result.emits))
