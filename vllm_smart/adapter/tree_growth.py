"""Growing trees where vLLM's speculators would draft chains, whatever the drafter.

Where the policy says that drafting pays, the drafter first reads the tokens it has not seen - the
accepted path, or more after steps without drafting - and then grows level by level, each level one
forward over the frontier of all requests, as long as the next one pays.
"""

from typing import Any

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.arrays import HostCopy, to_device
from vllm_smart.adapter.cuda.growth import DeviceGrowth
from vllm_smart.adapter.draft_tokens import NO_TOKEN
from vllm_smart.adapter.drafting_step import DraftingStep, StepOutcome
from vllm_smart.adapter.growth_on_host import HostGrowth
from vllm_smart.adapter.host import runs_on_triton
from vllm_smart.adapter.limits import check_attention
from vllm_smart.adapter.model_state import TreeModelState
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.adapter.step_plan import StepPlan, StepResult
from vllm_smart.config import SmartConfig
from vllm_smart.scheduler import Drafting

_PROBED_SHARE = 16  # one request in so many drafts in a probe


class TreeGrowth(DeviceGrowth, HostGrowth):
    """The part that all drafters share. Subclasses say how one forward of their model runs."""

    def start(self, config: SmartConfig, req_states: RequestState) -> None:
        """Set up after construction; vLLM's constructors take no more arguments."""
        self.runtime = TreeRuntime(self.vllm_config, config)
        self.req_states = req_states
        self._num_probes = 0
        self.temperature_now = self.temperature

    def set_attn(self, model_state: Any, *args: Any, **kwargs: Any) -> None:
        super().set_attn(model_state, *args, **kwargs)
        assert isinstance(model_state, TreeModelState)
        groups = [*self.target_attn_groups, *self.attn_groups]
        check_attention(self.vllm_config, (group for of_kind in groups for group in of_kind))
        model_state.bind(self.runtime, self.draft_attn_layer_names)
        self.start_reading()
        self.runtime.keep_backlog(self.backlog, self.marks, self.backlog_group)

    def _configure_decode_metadata_update(self) -> None:
        # Fused chain decoding would bypass our levels.
        self.supports_decode_metadata_update = False

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        super().init_cudagraph_manager(cudagraph_mode)
        if runs_on_triton():
            self.prepare_growth_graphs(cudagraph_mode)

    def capture(self) -> None:
        super().capture()
        self.capture_growth()

    def _multi_step_decode(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's chain loop, in warm-up runs; real steps grow trees."""

    @torch.inference_mode()
    def propose(
        self,
        input_batch: InputBatch,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, torch.Tensor],
        last_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        next_prefill_tokens: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        dummy_run: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Grow a tree for every request that will decode next, or for none.

        Returns:
            [num_reqs, num_speculative_tokens] int64, each tree's tokens best-first; beyond its
            nodes NO_TOKEN where the scheduler waits for them.
        """
        runtime = self.runtime
        # Warm-up runs before there is a KV cache, and so a model state, are dummies too.
        plan = None if dummy_run else self.model_state.plan_of(input_batch)
        hidden_states = aux_hidden_states or [last_hidden_states]
        if plan is None:
            if runs_on_triton():  # on CPUs, memory that is never written is never taken
                self.reserve(hidden_states)
            return super().propose(
                input_batch,
                attn_metadata,
                slot_mappings,
                last_hidden_states,
                aux_hidden_states,
                num_sampled,
                num_rejected,
                last_sampled,
                next_prefill_tokens,
                temperature,
                seeds,
                dummy_run=True,
                **kwargs,
            )
        runtime.catch_up()
        no_token = NO_TOKEN if self._tells_scheduler else 0
        drafts = self.draft_tokens[: input_batch.num_reqs].fill_(no_token)
        self.temperature_now = temperature
        outcome = StepOutcome(
            plan,
            HostCopy(num_sampled, num_rejected) if plan.has_drafts else None,
            HostCopy(last_sampled) if runtime.is_tracing else None,
        )
        if runtime.decides_on_device:
            grown = self._propose_on_device(outcome, hidden_states, num_rejected)
        else:
            grown = self._propose_on_host(outcome, hidden_states)
        if grown is not None:
            req, tokens = grown
            drafts[req, : tokens.shape[1]] = tokens.clamp(min=no_token)
        return drafts

    @property
    def _tells_scheduler(self) -> bool:
        """Whether the scheduler waits for what is grown.

        Where it does not, and in vLLM's warm-up, it leaves room in any case: rows of no node need some
        token that the model knows.
        """
        is_ahead = self.vllm_config.scheduler_config.async_scheduling
        return not (is_ahead or self.runtime.is_warming_up)

    def _propose_on_host(
        self, outcome: StepOutcome, hidden_states: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Wait for the step's outcome, learn from it and grow trees.

        Returns:
            [num_drafting] batch indices and [num_drafting, nodes] tokens, NO_TOKEN beyond each tree;
            None where no request drafts.
        """
        result = outcome.result
        self.runtime.verified(outcome.plan, result, outcome.last_sampled)
        step = self._decide(outcome.plan, result, hidden_states)
        log = self.grow_on_host(step, hidden_states) if len(step.drafting) else None
        trees = log.trees if log is not None else None
        self.runtime.ended(result, step.drafting, trees)
        if trees is not None and self.model_state.device_trees is not None:
            depth = self.runtime.limits.depth
            self.model_state.device_trees.put_from_host(step.slots, trees, depth)
        self.finish(step, result, log)
        if log is None:
            return None
        assert log.trees is not None
        tokens = np.where(log.trees.is_node(), log.trees.token, NO_TOKEN)[:, 1:]
        return to_device(step.drafting, self.device), to_device(tokens, self.device)

    def _propose_on_device(
        self, outcome: StepOutcome, hidden_states: list[torch.Tensor], num_rejected: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The same without waiting: what was decided and what came of it is learnt a step later."""
        runtime = self.runtime
        step = self._decide(outcome.plan, StepResult.at_most(outcome.plan), hidden_states)
        runtime.progress.drafts(step.result.slots, step.slots)
        if not len(step.drafting):
            touched = self.take_touched()

            def rested() -> None:
                runtime.verified(outcome.plan, outcome.result, outcome.last_sampled)
                self.finish(step, outcome.result, None, touched)

            runtime.late_step.put(lambda: runtime.ended(outcome.result, step.drafting, None), rested)
            return None
        grown = self.grow_on_device(step, hidden_states, num_rejected)
        runtime.late_step.put(
            lambda: runtime.ended(outcome.result, step.drafting, grown.trees),
            lambda: self.learn_from_device(outcome, grown),
        )
        tokens = grown.tokens
        if self._tells_scheduler:
            place = torch.arange(1, tokens.shape[1] + 1, device=self.device)
            tokens = tokens.masked_fill(place >= grown.num_chosen.unsqueeze(1), NO_TOKEN)
        return grown.req, tokens

    def _decide(
        self, plan: StepPlan, result: StepResult, hidden_states: list[torch.Tensor]
    ) -> DraftingStep:
        """Who drafts; of the others, what they have computed is kept until they do."""
        load = self.runtime.load(plan, result)
        decision = self.runtime.controller.who_drafts(
            load, self.num_unread(result), plan.num_prompt_rows
        )
        drafting = self._drafting(decision, result)
        self.keep_unread(plan, result, drafting, hidden_states)
        return DraftingStep(plan, result, drafting, decision, load)

    def _drafting(self, decision: Drafting, result: StepResult) -> np.ndarray:
        """[num_drafting] batch indices of the requests that the drafter runs for, ascending."""
        if decision is Drafting.NONE:
            return np.zeros(0, np.int64)
        can_read = self.readable_end(result) > self.backlog.read_to[result.slots]
        if decision is not Drafting.PROBE:
            return np.flatnonzero(can_read)
        able = np.flatnonzero(can_read & result.emits)
        count = min(len(able), max(1, len(able) // _PROBED_SHARE))
        start = self._num_probes * count
        self._num_probes += 1
        return np.sort(able[(start + np.arange(count)) % max(len(able), 1)])
