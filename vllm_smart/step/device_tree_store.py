"""The trees on the device: those of all request-state slots, and a step's rows arranged by them.

Nothing here waits for the host or tells it anything: growth puts the trees, the step that verifies them
finds them. Buffers never move, for graphs to read.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_smart.arrays import to_device
from vllm_smart.kernels.arrange_rows.gpu import arrange_trees
from vllm_smart.kernels.plant import KeptTrees
from vllm_smart.kernels.plant.masks import ancestor_masks
from vllm_smart.kernels.tree_attention import MASK_WORD_BITS
from vllm_smart.step.batch import StepBatch
from vllm_smart.tree import TreeBatch


@dataclass(frozen=True)
class DeviceNodes:
    """The nodes of one batch, requests in batch order."""

    parent: torch.Tensor  # [num_reqs, max_nodes] int32, -1 at roots
    token: torch.Tensor  # [num_reqs, max_nodes] int64
    position: torch.Tensor  # [num_nodes] int64, root position plus depth
    depth: torch.Tensor  # [num_nodes] int32
    root_position: torch.Tensor  # [num_reqs] int64


class DeviceTreeStore:
    """By slot; as in `TreeStore`, how many nodes of a tree are verified comes from the batch.

    Attributes:
        kept: of all slots, which growth writes; the last one is of no request.
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
        shape = (max_num_reqs + 1, max_nodes)
        self.kept = KeptTrees(
            token=zeros(*shape, dtype=torch.int64),
            parent=zeros(*shape),
            depth=zeros(*shape),
            mask=zeros(*shape, words),
            value=zeros(*shape, dtype=torch.float32),
        )
        self.kept.parent[:, 0] = -1
        self.tail_lens = zeros(max_num_reqs)
        self.row_mask = zeros(max_rows, words)

    def put_from_host(self, slots: np.ndarray, trees: TreeBatch, max_depth: int) -> None:
        """Keep trees that were grown on the host in place of the slots' old ones.

        Args:
            slots: [num_reqs].
            trees: theirs, best first.
            max_depth: no tree is deeper.
        """
        is_node, num_more = trees.is_node(), self.kept.token.shape[1] - trees.token.shape[1]

        def filled(nodes: np.ndarray, inert: int = 0) -> np.ndarray:
            nodes = np.where(is_node, nodes, nodes.dtype.type(inert))
            return np.pad(nodes, ((0, 0), (0, num_more)), constant_values=inert)

        arrays = (
            filled(trees.token, inert=-1),
            filled(trees.parent),
            filled(trees.depth),
            filled(trees.path_prob),
        )
        slot, *columns = (to_device(each, self.tail_lens.device) for each in (slots, *arrays))
        token, parent, depth, value = columns
        for room, values in (
            (self.kept.token, token),
            (self.kept.parent, parent),
            (self.kept.depth, depth),
            (self.kept.value, value),
            (self.kept.mask, ancestor_masks(parent, max_depth)),
        ):
            room.index_copy_(0, slot, values)

    def clear(self) -> None:
        """All requests are causal; masks are not read."""
        self.tail_lens.zero_()

    def arrange(self, batch: StepBatch, positions: torch.Tensor) -> DeviceNodes:
        """Arrange the rows of a batch that has drafts.

        Args:
            positions: [..., num_rows] int64, by row; changed to what nodes rotate by.
        """
        num_nodes = len(batch.logits_indices)
        node_position = batch.positions.new_empty(num_nodes)
        node_depth = self.tail_lens.new_empty(num_nodes)
        root_position = node_position.new_empty(batch.num_reqs)
        shape = (batch.num_reqs, self.kept.token.shape[1])
        parent, token = node_depth.new_empty(shape), node_position.new_empty(shape)
        arrange_trees(
            batch.idx_mapping,
            batch.cu_num_logits,
            batch.query_start_loc,
            self.kept,
            batch.positions,
            positions,
            self.row_mask,
            self.tail_lens,
            node_position,
            node_depth,
            root_position,
            parent,
            token,
        )
        return DeviceNodes(parent, token, node_position, node_depth, root_position)
