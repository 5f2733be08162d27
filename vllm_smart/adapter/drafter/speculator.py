"""vLLM's own draft-model speculators, which load and run the drafter; what they draft is ours.

Nothing is decided here: vLLM's calls are handed on to `TreeDrafting`.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.eagle.speculator import EagleSpeculator
from vllm.v1.worker.gpu.spec_decode.gemma4.speculator import Gemma4Speculator
from vllm.v1.worker.gpu.spec_decode.mtp.speculator import MTPSpeculator
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import (
    TargetDependentARSpeculator,
)

from vllm_smart.adapter.drafter.media_rows import MediaInputs, apart, with_media
from vllm_smart.adapter.engine_settings import has_tree_attention
from vllm_smart.seams.host import runs_on_triton

if TYPE_CHECKING:
    from vllm_smart.adapter.drafter.drafting import TreeDrafting
    from vllm_smart.adapter.runtime import TreeRuntime


class TreeSpeculator(DraftModelSpeculator):
    """Where vLLM calls; subclasses say how one forward of their model runs."""

    # Whether the drafter needs the target's hidden states, which must be kept until it reads.
    reads_hidden_states = True
    # The drafter's row at position p takes the token at p + token_shift.
    token_shift = 1
    # Whether the drafter writes keys and values of its own. One that does not reads the target's.
    keeps_cache = True
    drafting: "TreeDrafting"

    @cached_property
    def sees_trees(self) -> bool:
        """Whether the drafter's attention is ours."""
        return has_tree_attention(self.vllm_config)

    @property
    def combines_hidden_states(self) -> bool:
        """Whether the drafter reads what several of the target's layers say, made one state first."""
        return self.method in ("eagle3", "dflash", "dspark")

    @property
    def takes_media(self) -> bool:
        """Whether the drafter takes the target's embeddings of images; others take tokens."""
        return self.supports_mm_inputs and not self.combines_hidden_states and not runs_on_triton()

    @property
    def runtime(self) -> "TreeRuntime":
        """What this worker's trees share."""
        return self.drafting.runtime

    def graph_for(self, num_rows: int) -> BatchExecutionDescriptor:
        """How a forward over `num_rows` runs, and to how many rows it is padded: without a graph."""
        return without_graph(num_rows)

    def forward_rows(
        self,
        num_rows: int,
        hidden: torch.Tensor | None,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
        graph: BatchExecutionDescriptor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the drafter over the first `num_rows` of the input buffers.

        Args:
            hidden: [num_rows, hidden] what each row takes from the target or its parent, for
                drafters that read hidden states; None leaves what the buffer holds.
            graph: how it runs, as `graph_for` says or without.

        Returns:
            [num_rows, hidden] each: what logits are computed from, and what children take.
        """
        raise NotImplementedError

    def set_attn(self, *args: Any, **kwargs: Any) -> None:
        super().set_attn(*args, **kwargs)
        self.drafting.attach()

    def reading_mode(self, cudagraph_mode: CUDAGraphMode) -> CUDAGraphMode:
        """Which graphs vLLM captures of the drafter, where the target's are of `cudagraph_mode`."""
        return cudagraph_mode

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        super().init_cudagraph_manager(self.reading_mode(cudagraph_mode))
        self.drafting.prepare_graphs(cudagraph_mode)

    def capture(self) -> None:
        super().capture()
        self.drafting.capture()

    def _configure_decode_metadata_update(self) -> None:
        # Fused chain decoding would bypass our levels.
        self.supports_decode_metadata_update = False

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
        mm_inputs: MediaInputs | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Grow a tree for every request that will decode next, or for none.

        Returns:
            [num_reqs, num_speculative_tokens] int64, each tree's tokens best-first; beyond its
            nodes NO_TOKEN where the scheduler waits for them.
        """
        # Warm-up runs before there is a KV cache, and so a model state, are dummies too.
        plan = None if dummy_run else self.model_state.plan_of(input_batch)
        hidden_states = aux_hidden_states or [last_hidden_states]
        if plan is not None:
            if mm_inputs is not None and self.takes_media:
                hidden_states = [with_media(last_hidden_states, mm_inputs, self.hidden_size)]
            return self.drafting.propose(
                plan, hidden_states, num_sampled, num_rejected, last_sampled, temperature
            )
        if runs_on_triton():  # on CPUs, memory that is never written is never taken
            self.drafting.reserve(hidden_states)
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
            mm_inputs=mm_inputs,
            **kwargs,
        )


class TreeHeadSpeculator(TreeSpeculator, TargetDependentARSpeculator):
    """Heads on the target: each row also takes the hidden state of its parent's row."""

    def reading_mode(self, cudagraph_mode: CUDAGraphMode) -> CUDAGraphMode:
        """Piecewise graphs: vLLM's full ones would hold its own chains."""
        has_piecewise = cudagraph_mode.has_piecewise_cudagraphs()
        return CUDAGraphMode.PIECEWISE if has_piecewise else CUDAGraphMode.NONE

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
        media = None
        if hidden is not None:
            hidden, media = apart(hidden, self.hidden_states.shape[1])
            self.hidden_states[:num_rows] = hidden
        # Rows of padding attend to nothing and write to no slot.
        out, to_children = self._run_model(
            graph.num_tokens, metadata, slot_mappings, None, graph.cg_mode, mm_inputs=media
        )
        return out[:num_rows], to_children[:num_rows]


class TreeEagleSpeculator(TreeHeadSpeculator, EagleSpeculator):
    """EAGLE and EAGLE-3 heads."""


class TreeMtpSpeculator(TreeHeadSpeculator, MTPSpeculator):
    """A head that the target brings for multi-token prediction, the same one at every level."""


class TreeAssistantSpeculator(TreeHeadSpeculator, Gemma4Speculator):
    """Gemma 4's assistants: all their rows look at the target's cache, from where it ends."""

    keeps_cache = False


class TreeDraftModelSpeculator(TreeSpeculator, StandaloneARSpeculator):
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


def without_graph(num_rows: int) -> BatchExecutionDescriptor:
    """A forward over `num_rows` that runs as it is, not padded; it may become part of a graph."""
    return BatchExecutionDescriptor(CUDAGraphMode.NONE, num_rows, num_reqs=None)
