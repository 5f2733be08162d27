"""A step's drafting where the host waits for the step's outcome first."""

import numpy as np
import torch

from vllm_smart.adapter.draft_tokens import NO_TOKEN
from vllm_smart.adapter.drafter.host_growth import HostGrowth
from vllm_smart.adapter.drafter.reading import DraftReading
from vllm_smart.adapter.drafter.who_drafts import WhoDrafts
from vllm_smart.adapter.model_state import TreeModelState
from vllm_smart.adapter.runtime import PutOff, TreeRuntime
from vllm_smart.arrays import to_device
from vllm_smart.growth.drafting_step import StepOutcome
from vllm_smart.scheduler import Drafting


class HostDrafting:
    """Learns from a step, decides who drafts, and grows trees."""

    def __init__(
        self, runtime: TreeRuntime, reading: DraftReading | None, who: WhoDrafts, growth: HostGrowth
    ) -> None:
        """Args:
        runtime: of the worker.
        reading: what the drafter has read; None without a drafter.
        who: decides for which requests the drafter runs.
        growth: grows the trees.
        """
        self._runtime, self._reading, self._who, self._growth = runtime, reading, who, growth

    def propose(
        self,
        outcome: StepOutcome,
        hidden_states: list[torch.Tensor],
        temperature: torch.Tensor,
        model_state: TreeModelState,
        drafts: torch.Tensor,
    ) -> None:
        """Grow trees: now, or once vLLM has sent the step's tokens on their way.

        Args:
            hidden_states: the target's, [num_tokens, hidden] each.
            temperature: [max_num_reqs] float32 by request-state slot.
            model_state: which finds the trees.
            drafts: [num_reqs, num_speculative_tokens] int64, where their tokens go, best-first; filled
                with what stands beyond the trees.
        """

        def draft() -> torch.Tensor | None:
            grown = self._grow(outcome, hidden_states, temperature, model_state)
            if grown is None:
                return None
            req, tokens = grown
            drafts[req, : tokens.shape[1]] = tokens.clamp(min=least)
            return drafts

        runtime = self._runtime
        least = NO_TOKEN if runtime.tells_scheduler else 0
        if runtime.tells_scheduler:
            runtime.put_off(PutOff(outcome.plan.input_batch, draft))
        else:
            draft()

    def _grow(
        self,
        outcome: StepOutcome,
        hidden_states: list[torch.Tensor],
        temperature: torch.Tensor,
        model_state: TreeModelState,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Wait for the step's outcome, learn from it and grow trees.

        Returns:
            [num_reqs] batch indices and [num_reqs, nodes] tokens, NO_TOKEN beyond each tree; None where
            no request has a tree.
        """
        runtime, result = self._runtime, outcome.result
        runtime.verified(outcome.plan, result, outcome.last_sampled)
        runtime.settle_ngrams(result, temperature)
        step = self._who.decide(outcome.plan, result, hidden_states)
        log = self._growth.grow(step, hidden_states, temperature) if len(step.growing) else None
        trees = log.trees if log is not None else None
        runtime.keep(result, step.growing, trees)
        if trees is not None and model_state.device_trees is not None:
            model_state.device_trees.put_from_host(step.slots, trees, runtime.limits.depth)
        if self._reading is not None:
            has_run = log is None or log.drafting is not Drafting.NONE
            self._reading.has_read(result, step.drafting if has_run else step.drafting[:0])
        runtime.drafted(step.plan, result, step.load, log)
        if trees is None:
            return None
        tokens = np.where(trees.is_node(), trees.token, NO_TOKEN)[:, 1:]
        return to_device(step.growing, temperature.device), to_device(tokens, temperature.device)
