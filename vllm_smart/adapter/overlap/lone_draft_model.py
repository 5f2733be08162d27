"""A draft model without a target: loaded as vLLM's speculator loads it, with a KV cache of its own."""

import tempfile
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig, get_layers_from_vllm_config, set_current_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.platforms import current_platform
from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts, resolve_kv_cache_layout
from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec, init_attn_backend, init_kv_cache
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
from vllm.v1.worker.gpu_worker import init_worker_distributed_environment

from vllm_smart.adapter.drafter.speculator import TreeDraftModelSpeculator
from vllm_smart.attention.backends import attention_with_trees
from vllm_smart.attention.cpu import tree_attention
from vllm_smart.errors import ConfigError, UnsupportedError
from vllm_smart.kernels.kv_compaction.cpu import CpuKVCompaction
from vllm_smart.seams.versions import kv_cache_of


class LoneDraftModel(TreeDraftModelSpeculator):
    """vLLM's speculator as far as it runs the draft model.

    Attributes:
        num_seats: requests that its KV cache has room for, each with blocks of its own.
    """

    num_seats: int

    def set_attn(self, *args: Any, **kwargs: Any) -> None:
        # Trees are grown by whoever has us, not when vLLM proposes.
        StandaloneARSpeculator.set_attn(self, *args, **kwargs)

    @classmethod
    def load(cls, vllm_config: VllmConfig, memory_bytes: int, tree_slots: int) -> "LoneDraftModel":
        """Load the model in a process that runs nothing else.

        Args:
            vllm_config: of an engine; taken over.
            memory_bytes: of the KV cache, at most.
            tree_slots: positions of each request beyond its longest text.

        Raises:
            ConfigError: there is not enough memory for one request.
            UnsupportedError: its layers need several kinds of KV cache.
        """
        device = torch.device("cpu")
        with set_current_vllm_config(vllm_config):
            with tempfile.TemporaryDirectory() as folder:
                init_worker_distributed_environment(
                    vllm_config, 0, f"file://{folder}/meeting", 0, current_platform.dist_backend
                )
            model = cls(vllm_config, device)
            with attention_with_trees():
                model.load_model(torch.nn.Module())  # there is no target
            model._make_cache(memory_bytes, tree_slots)
        return model

    def _make_cache(self, memory_bytes: int, tree_slots: int) -> None:
        vllm_config, block_size = self.vllm_config, self.vllm_config.cache_config.block_size
        specs = get_kv_cache_spec(vllm_config)
        self._blocks_each = -(-(self.max_model_len + tree_slots) // block_size)
        bytes_each = self._blocks_each * sum(spec.page_size_bytes for spec in specs.values())
        self.num_seats = min(self.max_num_reqs, memory_bytes // bytes_each)
        if self.num_seats < 1:
            raise ConfigError(
                f"drafter.memory_gib={memory_bytes / 2**30:g} has no room for a request of "
                f"{self.max_model_len} tokens. Set it to {bytes_each / 2**30:.3g} or more, or pass a "
                "smaller --max-model-len."
            )
        _choose_layout(vllm_config, specs)
        num_blocks = 1 + self.num_seats * self._blocks_each  # block 0 is nobody's
        vllm_config.cache_config.num_gpu_blocks_override = num_blocks
        config = kv_cache_of(vllm_config, specs, 2 * bytes_each * (self.num_seats + 1))
        if len(config.kv_cache_groups) != 1:
            raise UnsupportedError(
                "drafter.placement='process': the draft model's layers need several kinds of KV cache. "
                "Set it to inline."
            )
        assert config.num_blocks == num_blocks
        tables = BlockTables(
            block_sizes=[block_size],
            max_num_reqs=self.max_num_reqs,
            max_num_batched_tokens=self.max_num_tokens,
            max_num_blocks_per_group=[self._blocks_each],
            device=self.device,
        )
        for seat in range(self.num_seats):
            first = 1 + seat * self._blocks_each
            tables.append_block_ids(seat, (list(range(first, first + self._blocks_each)),), True)
        tables.apply_staged_writes()
        self.set_attn(None, config, tables, None, [])
        _, _, kernel_block_sizes = init_attn_backend(config, vllm_config, self.device)
        init_kv_cache(
            vllm_config.compilation_config.static_forward_context,
            config,
            self.device,
            kernel_block_sizes,
            vllm_config,
            block_tables=tables,
            attn_groups=(group for of_kind in self.attn_groups for group in of_kind),
        )
        layers = vllm_config.compilation_config.static_forward_context
        names = config.kv_cache_groups[0].layer_names
        # Layers may share a cache; what is moved twice is lost.
        caches = {layers[name].kv_cache.data_ptr(): layers[name].kv_cache for name in names}
        self._compaction = CpuKVCompaction(list(caches.values()), tree_attention().team)

    def move(self, seat: int, source: np.ndarray, target: np.ndarray) -> None:
        """Move keys and values of one request, all at once.

        Args:
            source, target: [num_moves] positions.
        """
        first = (1 + seat * self._blocks_each) * self.vllm_config.cache_config.block_size
        self._compaction.run(first + source, first + target)


def _choose_layout(vllm_config: VllmConfig, specs: dict[str, Any]) -> None:
    """What vLLM's engine core does for the layers of its workers."""
    layer_type: Any = AttentionLayerBase
    layers = get_layers_from_vllm_config(vllm_config, layer_type)
    backends = [layer.get_attn_backend() for layer in layers.values()]
    layouts = [layout.name for layout in get_supported_kv_cache_layouts(backends)]
    resolve_kv_cache_layout(vllm_config, [layouts], specs.values())
