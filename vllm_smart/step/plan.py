"""One target step seen as trees: made once per step, read by attention, sampler and compaction."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from vllm_smart.arrays import to_device
from vllm_smart.profiling import Context, StepShape
from vllm_smart.step.batch import StepBatch
from vllm_smart.step.rows import TreeRows, TreeSizes
from vllm_smart.step.tree_store import TreeStore
from vllm_smart.step.walk import Walk
from vllm_smart.tree import TreeBatch, ancestor_masks

if TYPE_CHECKING:
    from vllm_smart.step.device_tree_store import DeviceNodes


@dataclass
class StepPlan:
    """The trees of one real (not dummy) batch, in batch order.

    A request without drafts is a tree of its root alone; its root is the last of its rows.

    A step that is scheduled ahead is planned before it is known what the one before has brought. Until
    `complete` its trees are roots alone, and the batch's numbers on the host are bounds from above.
    """

    input_batch: StepBatch
    trees: TreeBatch
    # Whether some tree is not a chain; if none is, vLLM's causal paths are right as they are.
    branching: bool
    is_complete: bool = True
    # Where rows are arranged on the device: what is known of them there. None without drafts.
    nodes: "DeviceNodes | None" = None
    # Set by the verifier; a batch without drafts has none.
    walk: Walk | None = None

    @classmethod
    def make(cls, input_batch: StepBatch, store: TreeStore) -> "StepPlan":
        """Plan for a scheduled batch, from what the scheduler kept of each request's tree."""
        num_drafts = input_batch.num_draft_tokens_per_req
        if num_drafts is None:
            return cls(input_batch, store.roots(input_batch.num_reqs), branching=False)
        trees = store.get(input_batch.idx_mapping_np, num_drafts + 1)
        return cls(input_batch, trees, branching=not bool(trees.is_chain().all()))

    @classmethod
    def ahead(cls, input_batch: StepBatch, store: TreeStore, may_branch: bool) -> "StepPlan":
        """Plan for a batch that is scheduled ahead, as far as it can be made.

        Args:
            may_branch: whether trees need not be chains.
        """
        branching = may_branch and input_batch.num_draft_tokens_per_req is not None
        return cls(input_batch, store.roots(input_batch.num_reqs), branching, is_complete=False)

    @property
    def is_plain(self) -> bool:
        """Whether each request decodes one token, and nothing is prefilled or verified."""
        batch = self.input_batch
        return not batch.has_prefill and not self.has_drafts

    @property
    def has_drafts(self) -> bool:
        """Whether anything is verified."""
        return self.input_batch.num_draft_tokens_per_req is not None

    @property
    def num_prompt_rows(self) -> int:
        """Rows of prompts among those computed."""
        batch = self.input_batch
        if not batch.has_prefill:
            return 0
        is_prompt = batch.num_computed_tokens_np < batch.prefill_len_np
        return int(batch.num_scheduled_tokens.sum(where=is_prompt))

    @cached_property
    def root_pos(self) -> np.ndarray:
        """[num_reqs] position of each root: the number of tokens before it."""
        batch = self.input_batch
        root_pos: np.ndarray = batch.num_computed_tokens_np + batch.num_scheduled_tokens
        return root_pos - self.trees.num_nodes

    @cached_property
    def root_row(self) -> np.ndarray:
        """[num_reqs] index of each root's row among the batch's query rows."""
        batch = self.input_batch
        return batch.query_start_loc_np[1 : batch.num_reqs + 1] - self.trees.num_nodes

    @property
    def path(self) -> np.ndarray | None:
        """[num_reqs, longest] nodes visited by the walk (-1 beyond). The first look may wait."""
        return self.walk.on_host[0] if self.walk is not None else None

    @property
    def num_accepted(self) -> np.ndarray | None:
        """[num_reqs] draft nodes accepted. The first look may wait."""
        return self.walk.on_host[1] if self.walk is not None else None

    @property
    def shape(self) -> StepShape:
        """What the step consists of, as costs are asked for it."""
        batch, num_reqs = self.input_batch, self.input_batch.num_reqs
        of_rows = self.num_computed
        if not self.is_plain:
            before = batch.num_computed_tokens_np[:num_reqs]
            of_rows = int(before @ batch.num_scheduled_tokens[:num_reqs])
        return StepShape(
            num_tokens=batch.num_tokens,
            context=Context(float(self.num_computed), of_rows / batch.num_tokens),
            num_requests=num_reqs,
            branches=self.branching,
        )

    @cached_property
    def num_computed(self) -> int:
        """Tokens before the step's rows, over all requests."""
        return sum(self.input_batch.num_computed_tokens_np.tolist())

    @cached_property
    def is_node(self) -> np.ndarray:
        """[num_reqs, max_nodes] bool: which entries of the trees are nodes, not padding.

        Indexing an array of that shape with it flattens it into the order of logits rows.
        """
        return self.trees.is_node()

    @cached_property
    def node_pos(self) -> np.ndarray:
        """[num_logits] int64: root position plus depth of each logits row."""
        positions: np.ndarray = (self.root_pos[:, None] + self.trees.depth)[self.is_node]
        return positions.astype(np.int64)

    def node_places(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """[num_logits] each: position int64, and depth int32 of each logits row."""
        if self.nodes is not None:
            return self.nodes.position, self.nodes.depth
        return to_device(self.node_pos, device), to_device(self.trees.depth[self.is_node], device)

    @cached_property
    def shifted_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose depth is not their index in the tree: (row [n], depth - index [n])."""
        index = np.arange(self.trees.parent.shape[1])
        shift = np.where(self.is_node, self.trees.depth - index, 0)
        req, node = np.nonzero(shift)
        return self.root_row[req] + node, shift[req, node]

    def tree_sizes(self) -> TreeSizes:
        """Of the requests that may have drafts."""
        batch = self.input_batch
        assert batch.num_draft_tokens_per_req is not None
        n = int(np.count_nonzero(batch.num_draft_tokens_per_req))
        num_rows = batch.num_scheduled_tokens[:n]
        return TreeSizes(
            num_reqs=n,
            num_rows=int(batch.query_start_loc_np[n]),
            max_query_len=int(num_rows.max()),
            max_seq_len=int((batch.num_computed_tokens_np[:n] + num_rows).max()),
        )

    def complete(self, ends: np.ndarray, counts: np.ndarray | None, store: TreeStore) -> None:
        """Plan for what runs, now that it is known; the batch's numbers on the host become exact.

        Args:
            ends: [num_reqs] position after the last one that stands of each request.
            counts: [num_reqs] draft nodes that are verified; None without drafts.
            store: of the trees, those of the last step included.
        """
        batch, num_reqs = self.input_batch, self.input_batch.num_reqs
        self.is_complete = True
        batch.num_computed_tokens_np = ends.astype(batch.num_computed_tokens_np.dtype)
        if counts is None:
            return
        assert batch.num_draft_tokens_per_req is not None
        counts = counts.astype(batch.num_draft_tokens_per_req.dtype)
        num_rows = batch.num_scheduled_tokens - batch.num_draft_tokens_per_req + counts
        batch.num_draft_tokens_per_req, batch.num_scheduled_tokens = counts, num_rows
        query_start, logits_start = (
            batch.query_start_loc_np.copy(),
            batch.cu_num_logits_np.copy(),
        )
        np.cumsum(num_rows, out=query_start[1 : num_reqs + 1])
        np.cumsum(counts + 1, out=logits_start[1:])
        batch.query_start_loc_np, batch.cu_num_logits_np = query_start, logits_start
        self.trees = store.get(batch.idx_mapping_np, counts + 1)
        self.branching = not bool(self.trees.is_chain().all())

    def tree_rows(self) -> TreeRows:
        """Rows of the first requests, as far as they compute their trees and nothing else.

        Those that have drafts are among them (vLLM sorts them first), and so is whoever decodes
        without, unless a prompt comes before: two attention kernels in a layer are dearer than one.
        """
        num_nodes = self.trees.num_nodes
        is_tree_alone = num_nodes == self.input_batch.num_scheduled_tokens[: len(num_nodes)]
        n = int(np.argmin(np.append(is_tree_alone, False)))
        assert not (num_nodes[n:] > 1).any(), "requests with drafts must lead the batch"
        masks = ancestor_masks(self.trees.parent[:n])
        return TreeRows(
            query_start_loc=self.input_batch.query_start_loc_np[: n + 1],
            seq_lens=(self.root_pos + num_nodes)[:n].astype(np.int32),
            tail_lens=num_nodes[:n],
            ancestor_mask=masks[self.is_node[:n]],
        )

    def moves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Accepted nodes that are not yet in place: (request [n], from node [n], to index [n])."""
        empty = np.zeros(0, np.int64)
        if self.path is None or not self.branching:
            return empty, empty, empty
        to = np.arange(self.path.shape[1])
        req, index = np.nonzero((self.path > 0) & (self.path != to))
        return req, self.path[req, index], index

    def rows_of(self, req: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Query rows [n] that computed known positions [n] of requests [n], after the walk.

        Beyond a root the accepted path counts, wherever its nodes are.
        """
        offset = position - self.root_pos[req]
        if self.path is not None:
            offset = np.where(offset > 0, self.path[req, np.maximum(offset, 0)], offset)
        rows: np.ndarray = self.root_row[req] + offset
        return rows
