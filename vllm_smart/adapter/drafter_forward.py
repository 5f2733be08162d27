"""One forward of the drafter: which requests it is about, what its rows see, how it runs."""

from typing import Any

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from vllm_smart.adapter.arrays import copy_to


class DrafterForward(DraftModelSpeculator):
    """What all drafters share. Subclasses say how their model runs."""

    # Whether the drafter needs the target's hidden states, which must be kept until it reads.
    reads_hidden_states = True
    # The drafter's row at position p takes the token at p + token_shift.
    token_shift = 1

    def draft_groups(self) -> list[int]:
        """The drafter's KV cache groups."""
        return sorted({group.kv_cache_group_id for groups in self.attn_groups for group in groups})

    def to_read(self, rows: torch.Tensor) -> torch.Tensor:
        """What the drafter takes of the target's rows, [num_rows, width of all its tensors]."""
        if self.method != "eagle3":
            return rows
        combined: torch.Tensor = self.model.combine_hidden_states(rows)
        return combined

    def use_requests(self, slots: np.ndarray, window_start: np.ndarray) -> None:
        """Put the block tables of `slots` first, each from where its request's window starts.

        Args:
            slots: [num_reqs] request-state slots.
            window_start: [num_reqs] first positions that the drafter sees, multiples of block sizes.
        """
        copy_to(self.idx_mapping[: len(slots)], slots)
        self.gather_tables(window_start)

    def gather_tables(self, window_start: np.ndarray) -> None:
        """The same, for the slots in `idx_mapping`."""
        num_reqs = len(window_start)
        tables = self.block_tables.gather_block_tables(self.idx_mapping[:num_reqs], num_reqs)
        for req in np.flatnonzero(window_start):
            for group in self.draft_groups():
                skipped = int(window_start[req]) // self.block_tables.block_sizes[group]
                tables[group][req] = tables[group][req].roll(-skipped)

    def causal_metadata(
        self, row_start: np.ndarray, seq_lens: np.ndarray, position: torch.Tensor
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Attention metadata and slot mappings of a pass over rows of the requests in use.

        Args:
            row_start: [num_reqs + 1] first row of each request, then num_rows; also in the input
                buffers.
            seq_lens: [num_reqs] tokens that the last row of each sees, itself included; likewise.
            position: [num_rows] int64, on the device.
        """
        num_reqs, num_rows = len(seq_lens), len(position)
        slot_mappings = self.block_tables.compute_slot_mappings(
            self.idx_mapping[:num_reqs],
            self.input_buffers.query_start_loc[: num_reqs + 1],
            position,
            self.graph_for(num_rows).num_tokens,
        )
        self.draft_max_seq_len = int(seq_lens.max())
        metadata = self._build_attn_metadata(
            num_reqs=num_reqs,
            batch_desc=BatchExecutionDescriptor(
                cg_mode=CUDAGraphMode.NONE, num_tokens=num_rows, num_reqs=num_reqs
            ),
            query_start_loc_np=row_start.astype(np.int32),
            seq_lens_cpu_upper_bound=torch.from_numpy(seq_lens.astype(np.int32)),
            step=0,
            slot_mappings=slot_mappings,
        )
        return metadata, build_slot_mappings_by_layer(slot_mappings, self.kv_cache_config)

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


def without_graph(num_rows: int) -> BatchExecutionDescriptor:
    """A forward over `num_rows` that runs as it is, not padded; it may become part of a graph."""
    return BatchExecutionDescriptor(CUDAGraphMode.NONE, num_rows, num_reqs=None)
