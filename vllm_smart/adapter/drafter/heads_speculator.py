"""vLLM's own speculator for several MTP heads, one for each further token; what they draft is ours."""

from typing import Any

import torch
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.spec_decode.multi_module_mtp.speculator import MultiModuleMTPSpeculator

from vllm_smart.adapter.drafter.media_rows import apart
from vllm_smart.adapter.drafter.speculator import TreeSpeculator


class TreeHeadsSpeculator(TreeSpeculator, MultiModuleMTPSpeculator):
    """Each forward runs one of the heads.

    Attributes:
        head: that the next forward runs, and logits are computed with.
    """

    head = 0

    @property
    def num_heads(self) -> int:
        """That the target brings."""
        num_heads: int = self.draft_model_config.hf_config.num_nextn_predict_layers
        return num_heads

    def compute_draft_logits(self, hidden_states: torch.Tensor, spec_step_idx: int) -> torch.Tensor:
        """[num_rows, vocabulary] by the head that has run last."""
        return super().compute_draft_logits(hidden_states, self.head)

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
        if self.inputs_embeds is not None:  # which vLLM's model takes instead of tokens
            embeddings, has_one = media or (None, None)
            self.inputs_embeds[:num_rows] = self.model.embed_input_ids(
                self.input_buffers.input_ids[:num_rows],
                multimodal_embeddings=embeddings,
                is_multimodal=has_one,
            )
        out, to_next = self._run_model(num_rows, metadata, slot_mappings, None, self.head)
        return out[:num_rows], to_next[:num_rows]
