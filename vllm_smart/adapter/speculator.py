"""vLLM's own draft-model speculators with trees: loading and the drafter's layers are theirs."""

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.spec_decode.eagle.speculator import EagleSpeculator
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.tree_growth import TreeGrowth
from vllm_smart.config import SmartConfig


class PiecewiseEagleSpeculator(EagleSpeculator):
    """Reads through piecewise graphs: vLLM's full ones would hold its own chains."""

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        has_piecewise = cudagraph_mode.has_piecewise_cudagraphs()
        super().init_cudagraph_manager(CUDAGraphMode.PIECEWISE if has_piecewise else CUDAGraphMode.NONE)


class TreeEagleSpeculator(TreeGrowth, PiecewiseEagleSpeculator):
    """EAGLE and EAGLE-3 heads: each row also takes the hidden state of its parent's row."""

    def graph_for(self, num_rows: int) -> BatchExecutionDescriptor:
        """The piecewise graph that vLLM has captured for draft prefills of this size, or none."""
        assert self.prefill_cudagraph_manager is not None
        return self.prefill_cudagraph_manager.dispatch(
            num_reqs=1, num_tokens=num_rows, uniform_token_count=None, num_active_loras=0
        )

    def forward_rows(
        self,
        num_rows: int,
        hidden: torch.Tensor | None,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
        graph: BatchExecutionDescriptor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if hidden is not None:
            self.hidden_states[:num_rows] = hidden
        # Rows of padding attend to nothing and write to no slot.
        out, to_children = self._run_model(
            graph.num_tokens, metadata, slot_mappings, None, graph.cg_mode
        )
        return out[:num_rows], to_children[:num_rows]


class TreeDraftModelSpeculator(TreeGrowth, StandaloneARSpeculator):
    """An independent draft model, which reads the bonus token, too, and tokens alone."""

    reads_hidden_states = False
    token_shift = 0

    def forward_rows(
        self,
        num_rows: int,
        hidden: torch.Tensor | None,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
        graph: BatchExecutionDescriptor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        buffers = self.input_buffers
        out = self._run_model(
            buffers.input_ids[:num_rows], buffers.positions[:num_rows], metadata, slot_mappings, None
        )[:num_rows]
        return out, out


def make_speculator(
    vllm_config: VllmConfig, config: SmartConfig, device: torch.device, req_states: RequestState
) -> TreeGrowth:
    """The speculator for `config.drafter.method`."""
    by_method = {
        "eagle": TreeEagleSpeculator,
        "eagle3": TreeEagleSpeculator,
        "draft_model": TreeDraftModelSpeculator,
    }
    speculator = by_method[config.drafter.method](vllm_config, device)
    speculator.start(config, req_states)
    return speculator
