"""Speculation in a worker that has no draft model: where vLLM would propose, trees are found."""

from typing import TYPE_CHECKING, Any

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.draft_tokens import NO_TOKEN
from vllm_smart.adapter.drafter.host_drafting import HostDrafting
from vllm_smart.adapter.engine_settings import has_tree_attention
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.config import SmartConfig
from vllm_smart.growth.drafting_step import StepOutcome
from vllm_smart.refusals.built_attention import check_attention

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    from vllm_smart.adapter.model_state import TreeModelState


class SpeculatorWithoutModel(BaseSpeculator):
    """Loads no model; subclasses say who grows its trees.

    Attributes:
        runtime: what this worker's trees share.
    """

    supports_mm_inputs = False
    draft_logits = None
    _runner: "GPUModelRunner"  # once its model is loaded
    _drafting: HostDrafting  # the subclass's

    def __init__(
        self,
        vllm_config: VllmConfig,
        config: SmartConfig,
        device: torch.device,
        req_states: RequestState,
    ) -> None:
        """Args:
        config: the engine's settings.
        req_states: vLLM's, where the tokens of requests are.
        """
        assert vllm_config.speculative_config is not None
        num_steps = vllm_config.speculative_config.num_speculative_tokens
        self.vllm_config = vllm_config
        self.runtime = TreeRuntime(vllm_config, config, req_states)
        self.draft_tokens = torch.zeros(
            (self.runtime.max_num_reqs, num_steps), dtype=torch.int64, device=device
        )

    def use(self, runner: "GPUModelRunner") -> None:
        """Say who runs the target, once it is loaded."""
        self._runner = runner

    @property
    def _model_state(self) -> "TreeModelState":
        state: TreeModelState = self._runner.model_state
        return state

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """The target's attention is known, and its KV cache is about to be."""
        groups = (group for of_kind in self._runner.attn_groups for group in of_kind)
        check_attention(self.vllm_config, groups, has_tree_attention(self.vllm_config))
        self._model_state.bind(self.runtime, draft_layer_names=set())

    def capture(self) -> None:
        """There is no graph of a drafter."""

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
        """Grow a tree for every request that will decode next.

        Returns:
            [num_reqs, num_speculative_tokens] int64: no trees yet where the scheduler waits for them.
        """
        runtime = self.runtime
        no_token = NO_TOKEN if runtime.tells_scheduler else 0
        drafts = self.draft_tokens[: input_batch.num_reqs].fill_(no_token)
        plan = None if dummy_run else self._model_state.plan_of(input_batch)
        if plan is None:
            return drafts.clamp_(min=0)
        runtime.catch_up()
        outcome = StepOutcome.of(
            plan, num_sampled, num_rejected, last_sampled if runtime.is_tracing else None
        )
        hidden_states, state = [last_hidden_states], self._model_state
        self._drafting.propose(outcome, hidden_states, temperature, state, drafts)
        return drafts
