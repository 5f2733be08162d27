"""Trees that were grown on the device, on their way to the host."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from vllm_smart.arrays import HostCopy
from vllm_smart.growth.drafting_step import DraftingStep
from vllm_smart.growth.state import GrowthState
from vllm_smart.proposer import COLUMNS, MODEL, Candidates
from vllm_smart.scheduler import BudgetPolicy
from vllm_smart.tree import TreeBatch


@dataclass
class GrownTrees:
    """The growth of one step. A request is one that drafts, in the order of the batch."""

    step: DraftingStep
    policy: BudgetPolicy
    num_read: int  # rows that the drafter read, and perhaps a few that did not stand
    num_usual: int  # as in `GrowthLog`
    most_slots: int  # most rows of a request in all levels together
    max_width: int  # most rows of a request of a level
    depth_left: np.ndarray  # [num_drafting] useful depth, had nothing of the step been rejected
    level_rows: list[int]  # of each further level that is run, padding included
    overhead_ms: float  # predicted, as in `GrowthLog`
    read_ms: float
    levels_ms: float
    # On the device, until the next step's growth.
    req: torch.Tensor = field(init=False)  # [num_drafting] int64 batch indices
    tokens: torch.Tensor = field(init=False)  # [num_drafting, nodes] int64, -1 beyond each tree
    num_chosen: torch.Tensor = field(init=False)  # [num_drafting] int32 nodes of these, roots included
    _num_nodes: int = field(init=False)  # most of a tree
    _trees: HostCopy = field(init=False)
    _candidates: HostCopy = field(init=False)  # the next step does not wait for these

    @property
    def spent_ms(self) -> float:
        """As in `GrowthLog`."""
        return self.overhead_ms + self.read_ms + self.levels_ms

    def copy_to_host(self, state: GrowthState, req: torch.Tensor) -> None:
        """Start the transfers of all that the host will ask for.

        Args:
            state: when all parts of the growth are queued.
            req: [num_drafting] int64 batch indices, on the device.
        """
        box, num_reqs = state.outbox, len(req)
        self.req, self._num_nodes = req, box.num_nodes
        self.tokens = box.tree_ints[:num_reqs, 1 : box.num_nodes].long()
        self.num_chosen = box.tree_ints[:num_reqs, -1]
        self._trees = HostCopy(box.tree_ints[:num_reqs], box.tree_floats[:num_reqs])
        self._candidates = HostCopy(
            box.candidate_ints[:num_reqs],
            box.candidate_floats[:num_reqs],
        )

    @cached_property
    def trees(self) -> TreeBatch:
        """What was chosen, and beyond it what is next best; the first look may wait for the copies."""
        ints, floats = self._trees.wait()
        token, *rest = np.split(ints[:, : 4 * self._num_nodes], 4, axis=1)
        parts = (*rest, *np.split(floats, 2, axis=1), ints[:, -1])
        names = ("parent", "depth", "rank", "path_prob", "draft_prob", "num_nodes")
        arrays = dict(zip(names, map(np.ascontiguousarray, parts), strict=True))
        # The drafter is the only source on devices.
        source = np.full_like(arrays["parent"], MODEL)
        return TreeBatch(token=token.astype(np.int64), source=source, **arrays)

    def candidates(self, weight: np.ndarray | None, max_nodes: np.ndarray | None) -> Candidates:
        """All candidates; the first look may wait for the copies.

        Args:
            weight: [num_drafting] what a token of each request is worth; None = all alike.
            max_nodes: [num_drafting] most draft nodes that each allows; None = all that there are.
        """
        ints, floats = self._candidates.wait()
        columns = [*np.split(ints, 5, axis=1), *np.split(floats, 2, axis=1)]
        return Candidates.closed_up(dict(zip(COLUMNS, columns, strict=True)), weight, max_nodes)
