"""vLLM's own block drafters, which predict several tokens in one forward; what they draft is ours.

A block is the root's token and masks after it, which see one another and all of the context. DFlash
says what stands at each mask, whatever stands at the others. DSpark adds what the token before says.
"""

from typing import Any

import torch
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.spec_decode.dflash.speculator import DFlashSpeculator
from vllm.v1.worker.gpu.spec_decode.dspark.speculator import DSparkSpeculator

from vllm_smart.adapter.drafter.speculator import TreeSpeculator
from vllm_smart.attention.backends import attention_without_trees


class TreeBlockSpeculator(TreeSpeculator, DFlashSpeculator):
    """DFlash, and what all block drafters share."""

    def load_draft_model(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """Loads it with vLLM's own attention: no row of a block is a node of a tree."""
        with attention_without_trees():
            model: torch.nn.Module = super().load_draft_model(*args, **kwargs)
        return model

    @property
    def block_len(self) -> int:
        """Tokens that a block predicts: as many as there may be levels, and as it was trained for."""
        config = self.draft_model_config.hf_config
        of_method = getattr(config, "dflash_config", None) or {}
        trained = of_method.get("block_size") or getattr(config, "block_size", None)
        trained = (trained or self.num_speculative_steps + 1) - (not self.sample_from_anchor)
        return min(self.runtime.limits.depth, self.num_speculative_steps, trained)

    @property
    def num_block_rows(self) -> int:
        """Rows of a block; where the root's own predicts nothing, one more than `block_len`."""
        return self.block_len + (not self.sample_from_anchor)

    def store_context(
        self, hidden: torch.Tensor, position: torch.Tensor, slot_mappings: torch.Tensor
    ) -> None:
        """Write keys and values of tokens that are known.

        Args:
            hidden: [num_rows, hidden] what the drafter takes of the target's rows.
            position: [num_rows] int64 of the tokens.
            slot_mappings: [num_groups, >= num_rows] int64 of the KV cache groups.
        """
        num_rows = len(position)
        self.hidden_states[:num_rows] = hidden
        self.context_positions[:num_rows] = position
        self._context_slot_mappings[:, :num_rows] = slot_mappings[
            self.draft_kv_cache_group_ids, :num_rows
        ]
        self._precompute_context_kv(0, num_rows)

    def forward_rows(
        self,
        num_rows: int,
        hidden: torch.Tensor | None,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
        graph: BatchExecutionDescriptor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out = self._run_model(num_rows, metadata, slot_mappings, None)[:num_rows]
        return out, out

    def after_tokens(self, rows: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """What logits are computed from, of places in blocks.

        Args:
            rows: [num_rows, hidden] outputs of the places.
            token: [num_rows] int64 that stands before each.
        """
        return rows


class TreeDFlashSpeculator(TreeBlockSpeculator):
    """DFlash."""


class TreeDSparkSpeculator(TreeBlockSpeculator, DSparkSpeculator):
    """DSpark, whose logits also depend on the token before."""

    def after_tokens(self, rows: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        return torch.cat((rows, self.model.markov_embed(token)), dim=1)

    def compute_draft_logits(self, hidden_states: torch.Tensor, spec_step_idx: int) -> torch.Tensor:
        """[num_rows, vocabulary] of what `after_tokens` returns."""
        width = self.hidden_states.shape[1]
        logits = self.model.compute_draft_logits(hidden_states[:, :width])
        logits = logits + self.model.markov_bias(hidden_states[:, width:])
        if self.model.draft_id_to_target_id is None:
            return logits
        target_id = self.model.map_draft_to_target(torch.arange(logits.shape[1], device=logits.device))
        of_target = logits.new_full((len(logits), self.vocab_size), float("-inf"))
        return of_target.index_copy_(1, target_id, logits)
