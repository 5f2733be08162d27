"""The target's side of a tree step: positions, masks, sampler and KV compaction."""

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup

from vllm_smart.adapter.chain_rows import each_row_alone
from vllm_smart.adapter.engine_settings import has_tree_attention
from vllm_smart.adapter.kv_compaction import KVCompaction
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.adapter.verifier import TreeVerifier
from vllm_smart.arrays import copy_to, to_device
from vllm_smart.errors import UnsupportedError
from vllm_smart.seams.host import runs_on_triton
from vllm_smart.step import StepPlan, TreeRows

if TYPE_CHECKING:
    from vllm_smart.step.device_tree_store import DeviceTreeStore


class TimedRows(NamedTuple):
    """What a batch that is timed is to look like."""

    sizes: list[int]  # rows of each request
    context_len: int  # tokens before the rows of each
    tokens: torch.Tensor  # [sum of sizes] int32 token ids


class TreeModelState(DefaultModelState):
    """vLLM's model state, with the target's rows arranged as trees.

    Chain-shaped batches pass through unchanged. The runtime is bound once the speculator, which
    owns it, is attached to the KV cache.
    """

    runtime: TreeRuntime | None = None
    sampler: Any = None  # the target's, once its model is loaded
    compaction: KVCompaction | None = None
    plan: StepPlan | None = None
    # Where GPUs find the trees; None where the host tells the kernels.
    device_trees: "DeviceTreeStore | None" = None
    timed: TimedRows | None = None  # what the next dummy batch is to be

    @classmethod
    def replacing(cls, stock: type) -> type["TreeModelState"]:
        """Ourselves, where `stock` is the state that vLLM would use and that we extend.

        Raises:
            UnsupportedError: the model brings a state of its own.
        """
        if stock is DefaultModelState:
            return cls
        if stock.__name__ == "MambaHybridModelState":
            from vllm_smart.adapter.recurrent_state import RecurrentModelState

            return RecurrentModelState
        raise UnsupportedError(
            f"vllm_smart does not support models with the state class {stock.__name__}. "
            "Serve this model with one of vLLM's own speculative methods."
        )

    @cached_property
    def sees_trees(self) -> bool:
        """Whether the target's attention is ours."""
        return has_tree_attention(self.vllm_config)

    def bind(self, runtime: TreeRuntime, draft_layer_names: set[str]) -> None:
        """Attach the runtime; `draft_layer_names` are attention layers that never see the trees."""
        self.runtime = runtime
        self.draft_layer_names = draft_layer_names
        self.tree_positions = torch.zeros(self.max_num_tokens, dtype=torch.int64, device=self.device)
        max_nodes = runtime.store.token.shape[1]
        drafter = runtime.settings.drafter
        if drafter.coupled_sampling and drafter.is_model:
            from vllm_smart.adapter.drafter.target_noise import TargetNoise

            runtime.noise = TargetNoise(self.sampler)
        if runs_on_triton():
            from vllm_smart.step.device_tree_store import DeviceTreeStore

            self.device_trees = DeviceTreeStore(
                self.max_num_reqs, self.max_num_tokens, max_nodes, self.device
            )

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        if not runs_on_triton():
            from vllm_smart.mrv2_cpu.sampler import CPUSampler

            sampler = CPUSampler.in_place_of(sampler)
        self.sampler = sampler
        return sampler, TreeVerifier(sampler, self.complete_plan_of)

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        super().initialize_kv_cache(kv_cache_config, block_tables)
        if self.sees_trees:  # what is accepted of a chain is in place
            self.compaction = KVCompaction(
                self.vllm_config, kv_cache_config, block_tables, self.draft_layer_names
            )

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        assert self.runtime is not None
        self.runtime.add_request(req_index, new_req_data)

    def preprocess_state(
        self,
        input_batch: InputBatch,
        block_tables: tuple[torch.Tensor, ...],
        kv_cache_config: KVCacheConfig,
        num_computed_tokens: torch.Tensor,
    ) -> None:
        super().preprocess_state(input_batch, block_tables, kv_cache_config, num_computed_tokens)
        assert self.runtime is not None
        self.plan = self.runtime.begin_step(input_batch)

    def plan_of(self, input_batch: InputBatch) -> StepPlan | None:
        """The plan of `input_batch`; None for a dummy batch, which has no trees."""
        if self.plan is not None and self.plan.input_batch is input_batch:
            return self.plan
        return None

    def complete_plan_of(self, input_batch: InputBatch) -> StepPlan | None:
        """The same, once the forward is queued: what it could not wait for is known."""
        plan = self.plan_of(input_batch)
        if plan is not None and self.runtime is not None:
            self.runtime.complete(plan)
        return plan

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        inputs = super().prepare_inputs(input_batch, req_states)
        plan = self.plan_of(input_batch)
        branching = plan is not None and plan.branching
        positions = inputs.get("positions")
        if positions is None:
            if not branching and self.device_trees is None:
                return inputs
            # The batch's own positions also name KV slots and stay sequential. Graphs read positions
            # where they lay at capture, so on GPUs all steps take this buffer.
            positions = self.tree_positions[: input_batch.num_tokens_after_padding]
            positions.copy_(input_batch.positions)
        if self.device_trees is not None:
            if plan is not None and plan.has_drafts:
                plan.nodes = self.device_trees.arrange(input_batch, positions)
        elif branching:
            assert plan is not None
            rows, shift = (to_device(a, self.device) for a in plan.shifted_rows)
            # M-RoPE positions are [3, num_tokens]; generated text advances all three alike.
            positions[..., rows] += shift
        return {**inputs, "positions": positions}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        inputs = super().prepare_dummy_inputs(num_reqs, num_tokens)
        if self.device_trees is None or "positions" in inputs:
            return inputs
        return {**inputs, "positions": self.tree_positions[:num_tokens]}

    def dummy_inputs_embeds(self, num_tokens: int) -> torch.Tensor:
        embeds: torch.Tensor = super().dummy_inputs_embeds(num_tokens)
        if self.timed is not None:
            embeds[: len(self.timed.tokens)] = self.model.embed_input_ids(self.timed.tokens)
        return embeds

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: list[list[AttentionGroup]],
        kv_cache_config: KVCacheConfig,
        for_capture: bool = False,
        ubatch_idx: int = 0,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if self.timed is not None:
            self._fill(input_batch, self.timed.tokens)
        plan = self.plan_of(input_batch)
        if plan is not None and plan.has_drafts and not self.sees_trees:
            assert not plan.branching, "a tree where drafts are chains"
            input_batch, block_tables = each_row_alone(input_batch, block_tables)
        metadata = super().prepare_attn(
            input_batch,
            cudagraph_mode,
            block_tables,
            slot_mappings,
            attn_groups,
            kv_cache_config,
            for_capture,
            ubatch_idx,
            **kwargs,
        )
        if self.timed is not None and cudagraph_mode == CUDAGraphMode.FULL:
            self._arrange(input_batch, self.timed.sizes, self.timed.context_len)
        branching = plan is not None and plan.branching
        if self.device_trees is None:
            # Chains, too: vLLM's own kernel rounds their rows otherwise than rows that decode alone.
            if self.sees_trees and plan is not None and bool((plan.trees.num_nodes > 1).any()):
                self._let_see(metadata, attn_groups, ubatch_idx, block_tables, plan.tree_rows())
            return metadata
        if plan is None or not plan.has_drafts:
            self.device_trees.clear()
        if for_capture:
            # One row per request is plain decoding, which has graphs of its own.
            longest = input_batch.max_query_len or int(input_batch.num_scheduled_tokens.max())
            if longest > 1:
                self._replace(
                    metadata, attn_groups, ubatch_idx, "for_graph", longest, self.device_trees
                )
        elif plan is not None and branching and cudagraph_mode != CUDAGraphMode.FULL:
            args = plan.tree_sizes(), self.device_trees
            self._replace(metadata, attn_groups, ubatch_idx, "with_trees", *args)
        return metadata

    def _fill(self, dummy: InputBatch, tokens: torch.Tensor) -> None:
        """Let rows that are to be timed be tokens.

        vLLM's are all token 0, which goes to the same experts, and padding, which goes to none.
        """
        dummy.input_ids[: len(tokens)] = tokens
        dummy.is_padding[: len(tokens)] = False

    def _arrange(self, dummy: InputBatch, sizes: list[int], context_len: int) -> None:
        """Let a full graph run over the requests that are to be timed.

        vLLM fills it with as many as it was captured for, of a row each: all of them would read a
        context, where one request with as many rows reads it once.
        """
        ends = np.full(dummy.num_reqs, sum(sizes), np.int32)
        seq_lens = np.zeros(dummy.num_reqs, np.int32)
        ends[: len(sizes)] = np.cumsum(sizes)
        seq_lens[: len(sizes)] = np.array(sizes) + context_len
        copy_to(dummy.query_start_loc[1:], ends)
        copy_to(dummy.seq_lens, seq_lens)

    def _let_see(
        self,
        metadata: dict[str, Any],
        attn_groups: list[list[AttentionGroup]],
        ubatch_idx: int,
        block_tables: tuple[torch.Tensor, ...],
        rows: TreeRows,
    ) -> None:
        """Let the target's layers see `rows`, each KV cache group by its own block tables."""
        for groups, table in zip(attn_groups, block_tables, strict=True):
            self._replace(metadata, [groups], ubatch_idx, "with_trees", table, rows)

    def _replace(
        self,
        metadata: dict[str, Any],
        attn_groups: list[list[AttentionGroup]],
        ubatch_idx: int,
        name: str,
        *args: Any,
    ) -> None:
        """Let the target's layers have what their builders' method `name` makes of `metadata`.

        The draft layers' prefill reuses this metadata and is causal, so they keep theirs.
        """
        for groups in attn_groups:
            for group in groups:
                layers = [layer for layer in group.layer_names if layer not in self.draft_layer_names]
                if layers:
                    builder = group.get_metadata_builder(ubatch_idx)
                    with_trees = getattr(builder, name)(metadata[layers[0]], *args)
                    metadata.update(dict.fromkeys(layers, with_trees))

    def postprocess_state(
        self,
        idx_mapping: torch.Tensor,
        num_sampled: torch.Tensor,
        num_computed_tokens: torch.Tensor | None = None,
    ) -> None:
        super().postprocess_state(idx_mapping, num_sampled, num_computed_tokens)
        if self.plan is not None and self.compaction is not None:
            self.compaction.run(self.plan)
