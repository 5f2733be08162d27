"""The target's side of a step of chains, of models with recurrent layers beside attention."""

from typing import Any

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadata
from vllm.v1.attention.backends.mamba2_attn import Mamba2AttentionMetadata
from vllm.v1.kv_cache_interface import KVCacheConfig, MambaSpec
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.model_states.mamba_hybrid import MambaHybridModelState
from vllm.v1.worker.utils import AttentionGroup

from vllm_smart.adapter.chain_rows import each_row_alone
from vllm_smart.adapter.model_state import TreeModelState
from vllm_smart.attention.mamba_rows import use_mamba_chain_rows, with_mamba_chains
from vllm_smart.attention.recurrent_rows import use_chain_rows, with_chains

Groups = list[list[AttentionGroup]]


class RecurrentModelState(TreeModelState, MambaHybridModelState):
    """vLLM's state for such models: a block of recurrent state for each row of a chain."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        use_chain_rows()
        use_mamba_chain_rows()

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: Groups,
        kv_cache_config: KVCacheConfig,
        for_capture: bool = False,
        ubatch_idx: int = 0,
        **kwargs: Any,
    ) -> dict[str, Any]:
        plan = self.plan_of(input_batch)
        rest = slot_mappings, kv_cache_config, for_capture, ubatch_idx
        if plan is None or not plan.has_drafts:
            metadata = self._with_states(input_batch, cudagraph_mode, block_tables, attn_groups, *rest)
        else:
            assert not plan.branching, "a tree where drafts are chains"
            recurrent, others = _recurrent(attn_groups, True), _recurrent(attn_groups, False)
            metadata = self._with_states(input_batch, cudagraph_mode, block_tables, recurrent, *rest)
            alone, tables = each_row_alone(input_batch, block_tables)
            metadata |= DefaultModelState.prepare_attn(
                self, alone, cudagraph_mode, tables, slot_mappings, others, *rest[1:]
            )
        # Layers of a group share theirs.
        chains = {id(of): _with_chains(of) for of in metadata.values()}
        return {layer: chains[id(of)] for layer, of in metadata.items()}

    def _with_states(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[torch.Tensor, ...],
        attn_groups: Groups,
        slot_mappings: torch.Tensor,
        *rest: Any,
    ) -> dict[str, Any]:
        return MambaHybridModelState.prepare_attn(
            self, input_batch, cudagraph_mode, block_tables, slot_mappings, attn_groups, *rest
        )


def _with_chains(metadata: Any) -> Any:
    if isinstance(metadata, GDNAttentionMetadata):
        return with_chains(metadata)
    return with_mamba_chains(metadata) if isinstance(metadata, Mamba2AttentionMetadata) else metadata


def _recurrent(attn_groups: Groups, are: bool) -> Groups:
    """The groups whose layers are recurrent, or are not; all others empty."""
    return [
        [group for group in groups if isinstance(group.kv_cache_spec, MambaSpec) == are]
        for groups in attn_groups
    ]
