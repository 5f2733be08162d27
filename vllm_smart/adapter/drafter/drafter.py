"""One forward of the drafter: which requests it is about, what its rows see, how it runs."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from vllm_smart.adapter.drafter.latent_rows import latent_metadata, reads_latents
from vllm_smart.adapter.drafter.speculator import TreeSpeculator
from vllm_smart.arrays import copy_to
from vllm_smart.kernels.allowed_tokens.cpu import RowMasks
from vllm_smart.kernels.allowed_tokens.logits import masked
from vllm_smart.kernels.coupled_tokens.device import DeviceNoise
from vllm_smart.seams.host import runs_on_triton

if runs_on_triton():
    from vllm_smart.kernels.top_tokens.gpu import top_tokens
else:
    from vllm_smart.kernels.top_tokens.cpu import top_tokens

# Rows of logits at a time: vLLM leaves little memory beside the KV cache, and vocabularies are large.
LOGITS_ROWS = 512


class DraftRows(NamedTuple):
    """Rows of one draft level by request; their tokens and positions are in the input buffers."""

    slot_position: torch.Tensor  # [num_rows] int64, the position whose KV slot the row writes
    row_start: torch.Tensor  # [num_reqs + 1] int32; rows beyond the last are padding


class Drafter:
    """vLLM's speculator as growth sees it: forwards over rows of our choosing, and their candidates.

    Attributes:
        host: vLLM's object, which has the model and its buffers.
    """

    def __init__(self, host: TreeSpeculator) -> None:
        """Args:
        host: before or after its KV cache is known.
        """
        self.host = host

    @cached_property
    def _reads_latents(self) -> bool:
        return not runs_on_triton() and reads_latents(self.host)

    def draft_groups(self) -> list[int]:
        """The drafter's KV cache groups."""
        groups = (group for of_kind in self.host.attn_groups for group in of_kind)
        return sorted({group.kv_cache_group_id for group in groups})

    def to_read(self, rows: torch.Tensor) -> torch.Tensor:
        """What the drafter takes of the target's rows, [num_rows, width of all its tensors]."""
        if not self.host.combines_hidden_states:
            return rows
        combined: torch.Tensor = self.host.model.combine_hidden_states(rows)
        return combined

    def use_requests(self, slots: np.ndarray, window_start: np.ndarray) -> None:
        """Put the block tables of `slots` first, each from where its request's window starts.

        Args:
            slots: [num_reqs] request-state slots.
            window_start: [num_reqs] first positions that the drafter sees, multiples of block sizes.
        """
        copy_to(self.host.idx_mapping[: len(slots)], slots)
        self.gather_tables(window_start)

    def gather_tables(self, window_start: np.ndarray) -> None:
        """`use_requests` for the slots that are in `idx_mapping` already."""
        host, num_reqs = self.host, len(window_start)
        tables = host.block_tables.gather_block_tables(host.idx_mapping[:num_reqs], num_reqs)
        for req in np.flatnonzero(window_start):
            for group in self.draft_groups():
                skipped = int(window_start[req]) // host.block_tables.block_sizes[group]
                tables[group][req] = tables[group][req].roll(-skipped)

    def metadata(
        self,
        row_start: np.ndarray,
        seq_lens: np.ndarray,
        position: torch.Tensor,
        causal: bool | Mapping[int, bool] = True,
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Attention metadata and slot mappings of a pass over rows of the requests in use.

        Args:
            row_start: [num_reqs + 1] first row of each request, then num_rows; also in the input
                buffers.
            seq_lens: [num_reqs] tokens that the last row of each sees, itself included; likewise.
            position: [num_rows] int64, on the device.
            causal: whether rows see those before them alone, or all of their request; by KV cache group
                where these differ.
        """
        host, num_reqs, num_rows = self.host, len(seq_lens), len(position)
        slot_mappings = host.block_tables.compute_slot_mappings(
            host.idx_mapping[:num_reqs],
            host.input_buffers.query_start_loc[: num_reqs + 1],
            position,
            host.graph_for(num_rows).num_tokens,
        )
        by_layer = build_slot_mappings_by_layer(slot_mappings, host.kv_cache_config)
        if self._reads_latents:
            return latent_metadata(host, row_start, seq_lens, slot_mappings), by_layer
        host.draft_max_seq_len = int(seq_lens.max())
        metadata = host._build_attn_metadata(
            num_reqs=num_reqs,
            batch_desc=BatchExecutionDescriptor(
                cg_mode=CUDAGraphMode.NONE, num_tokens=num_rows, num_reqs=num_reqs
            ),
            query_start_loc_np=row_start.astype(np.int32),
            seq_lens_cpu_upper_bound=torch.from_numpy(seq_lens.astype(np.int32)),
            step=0,
            causal=causal,
            slot_mappings=slot_mappings,
        )
        return metadata, by_layer

    def run_sequences(
        self,
        row_start: np.ndarray,
        seq_lens: np.ndarray,
        position: torch.Tensor,
        hidden: torch.Tensor | None,
        causal: bool | Mapping[int, bool] = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the drafter over rows that follow one another; see `TreeSpeculator.forward_rows`.

        Args:
            row_start, seq_lens, position, causal: as for `metadata`; tokens and positions of the rows
                are in the input buffers.
            hidden: [num_rows, hidden] what the rows take, for drafters that read hidden states.
        """
        host, num_rows = self.host, len(position)
        copy_to(host.input_buffers.query_start_loc[: len(row_start)], row_start)
        copy_to(host.input_buffers.seq_lens[: len(seq_lens)], seq_lens)
        metadata, slot_mappings = self.metadata(row_start, seq_lens, position, causal)
        graph = host.graph_for(num_rows)
        return host.forward_rows(num_rows, hidden, metadata, slot_mappings, graph)

    def run_rows(
        self,
        rows: DraftRows,
        hidden: torch.Tensor | None,
        attention: Callable[[Any, torch.Tensor], Any],
        graph: BatchExecutionDescriptor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the drafter on a level; see `TreeSpeculator.forward_rows` for what it returns.

        Args:
            hidden: [num_rows, hidden] what the rows' parents hand to them, for drafters that read
                hidden states; None where it is in their buffer.
            attention: makes the metadata from a builder and the block tables of its cache group.
            graph: how the forward runs.
        """
        host = self.host
        slot_mappings = host.block_tables.compute_slot_mappings(
            host.idx_mapping[: len(rows.row_start) - 1],
            rows.row_start,
            rows.slot_position,
            graph.num_tokens,
        )
        metadata: dict[str, Any] = {}
        for groups in host.attn_groups:
            for group in groups:
                table = host.block_tables.input_block_tables[group.kv_cache_group_id]
                tree = attention(group.get_metadata_builder(0), table)
                metadata.update(dict.fromkeys(group.layer_names, tree))
        by_layer = build_slot_mappings_by_layer(slot_mappings, host.kv_cache_config)
        return host.forward_rows(len(rows.slot_position), hidden, metadata, by_layer, graph)

    def candidates_after(
        self,
        to_logits: torch.Tensor,
        temperature: torch.Tensor,
        children: int,
        noise: DeviceNoise | None = None,
        masks: RowMasks | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The `children` likeliest tokens after each row and their probabilities.

        A part of the rows at a time, so that their logits never fill the memory together.

        Args:
            to_logits: [num_rows, hidden].
            temperature: [num_rows] float32 of their requests, which shape the probabilities; those
                of greedy ones are taken at temperature 1.
            children: at least 1.
            noise: that the rows are ranked by, on GPUs; None where no row is coupled.
            masks: of what may come after rows, on CPUs; None where all may.

        Returns:
            tokens [num_rows, children] int64 and probabilities float32, best first.
        """
        parts = []
        for first in range(0, len(to_logits), LOGITS_ROWS):
            rows = slice(first, first + LOGITS_ROWS)
            logits = self.host.compute_draft_logits(to_logits[rows], 0)
            logits = masked(logits, masks, first)
            with_noise = () if noise is None else (noise.of_rows(rows),)
            parts.append(top_tokens(logits, temperature[rows], children, *with_noise))
        tokens, probs = zip(*parts, strict=True)
        return (tokens[0], probs[0]) if len(parts) == 1 else (torch.cat(tokens), torch.cat(probs))
