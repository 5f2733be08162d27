"""The trees on the device: those of all request-state slots, and a step's rows arranged by them.

Nothing here waits for the host or tells it anything: growth puts the trees, the step that verifies them
finds them. Buffers never move, for graphs to read.
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_smart.adapter.arrays import to_device
from vllm_smart.kernels.torch_growth import MASK_WORD_BITS, ancestor_masks
from vllm_smart.kernels.triton_arrange import arrange_trees
from vllm_smart.tree import TreeBatch


@dataclass(frozen=True)
class DeviceNodes:
    """The nodes of one batch, requests in batch order."""

    parent: torch.Tensor  # [num_reqs, max_nodes] int32, -1 at roots
    token: torch.Tensor  # [num_reqs, max_nodes] int64
    position: torch.Tensor  # [num_nodes] int64, root position plus depth
    depth: torch.Tensor  # [num_nodes] int32
    root_position: torch.Tensor  # [num_reqs] int64


class DeviceTrees:
    """By slot; as in `TreeStore`, how many nodes of a tree are verified comes from the batch.

    Attributes:
        padding_slot: where trees of no request may be put.
        tail_lens: [max_num_reqs] int32 of the present step, 0 for requests whose rows are causal.
        row_mask: [max_rows, words] int32, bit j % 32 of word j // 32 for tree slot j.
    """

    def __init__(self, max_num_reqs: int, max_rows: int, max_nodes: int, device: torch.device) -> None:
        """Allocate: all trees are roots alone, all requests causal.

        Args:
            max_num_reqs: most requests of a step, and slots.
            max_rows: most rows of a step.
            max_nodes: of the largest tree, root included.
            device: of the target.
        """

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        words = -(-max_nodes // MASK_WORD_BITS)
        self.padding_slot = max_num_reqs
        self._token = zeros(max_num_reqs + 1, max_nodes, dtype=torch.int64)
        self._parent = zeros(max_num_reqs + 1, max_nodes)
        self._depth = zeros(max_num_reqs + 1, max_nodes)
        self._mask = zeros(max_num_reqs + 1, max_nodes, words)
        self._parent[:, 0] = -1
        self.tail_lens = zeros(max_num_reqs)
        self.row_mask = zeros(max_rows, words)

    def put(
        self,
        slot: torch.Tensor,
        token: torch.Tensor,
        parent: torch.Tensor,
        depth: torch.Tensor,
        max_depth: int,
    ) -> None:
        """Keep trees in place of the slots' old ones; capturable.

        Args:
            slot: [num_reqs] int64.
            token, parent, depth: [num_reqs, <= max_nodes] of the nodes, best first.
            max_depth: no tree is deeper.
        """
        width = parent.shape[1]
        mask = ancestor_masks(parent, max_depth)
        for room, values in (
            (self._token, token),
            (self._parent, parent),
            (self._depth, depth),
            (self._mask[:, :, : mask.shape[2]], mask),
        ):
            room[:, :width].index_copy_(0, slot, values)

    def put_from_host(self, slots: np.ndarray, trees: TreeBatch, max_depth: int) -> None:
        """The same of trees that were grown on the host."""
        arrays = (slots, trees.token, trees.parent, trees.depth)
        self.put(*(to_device(each, self.tail_lens.device) for each in arrays), max_depth)

    def clear(self) -> None:
        """All requests are causal; masks are not read."""
        self.tail_lens.zero_()

    def arrange(self, batch: InputBatch, positions: torch.Tensor) -> DeviceNodes:
        """Arrange the rows of a batch that has drafts.

        Args:
            positions: [..., num_rows] int64, by row; changed to what nodes rotate by.
        """
        num_nodes = len(batch.logits_indices)
        node_position = self._token.new_empty(num_nodes)
        node_depth = self._depth.new_empty(num_nodes)
        root_position = node_position.new_empty(batch.num_reqs)
        arrange_trees(
            batch.idx_mapping,
            batch.cu_num_logits,
            batch.query_start_loc,
            self._depth,
            self._mask,
            batch.positions,
            positions,
            self.row_mask,
            self.tail_lens,
            node_position,
            node_depth,
            root_position,
        )
        parent, token = (each[batch.idx_mapping] for each in (self._parent, self._token))
        return DeviceNodes(parent, token, node_position, node_depth, root_position)
