"""Candidate nodes of a batch of requests: one record, whoever has made them.

Knows probabilities and shapes; not what a node costs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.kernels.evidence import Evidence
from vllm_smart.kernels.grow.cpu import best_first, close_up
from vllm_smart.tree import TreeBatch

_Ints = npt.NDArray[np.integer[Any]]

# In the order in which the kernels write them.
COLUMNS: dict[str, type] = {
    "token": np.int64,
    "parent": np.int32,
    "depth": np.int32,
    "rank": np.int32,
    "source": np.int32,
    "draft_prob": np.float32,
    "path_prob": np.float32,
}
_ROOT = {"token": -1, "parent": -1, "source": -1, "draft_prob": 1.0, "path_prob": 1.0}
_TREE_COLUMNS = tuple(COLUMNS)


@dataclass
class Candidates:
    """All candidates of a batch; a candidate's id is its column. Column 0 is the root.

    Parents come before their children, siblings side by side. Columns from a request's `size` on
    hold none. A candidate with draft_prob 0 is ruled out: its path_prob is 0, it is neither expanded
    nor selected. Nothing changes any more once the trees have grown.
    """

    token: npt.NDArray[np.int64]  # [num_reqs, capacity]
    parent: npt.NDArray[np.int32]  # [num_reqs, capacity] ids, -1 at roots
    depth: npt.NDArray[np.int32]  # [num_reqs, capacity] 0 at roots
    rank: npt.NDArray[np.int32]  # [num_reqs, capacity] 0 = the likeliest of its siblings
    source: npt.NDArray[np.int32]  # [num_reqs, capacity] who named it, as in `source`; -1 at roots
    draft_prob: npt.NDArray[np.float32]  # [num_reqs, capacity] what its source says, given the parent
    path_prob: npt.NDArray[np.float32]  # [num_reqs, capacity] expected acceptance of the whole path
    size: npt.NDArray[np.int64]  # [num_reqs] columns in use, root included
    weight: npt.NDArray[np.float32]  # [num_reqs] what a token of each request is worth, 1 on average
    max_nodes: npt.NDArray[np.int64] | None  # [num_reqs] most draft nodes that each allows; None = all
    evidence: Evidence | None = None  # what speaks for each, where several sources do
    is_sampled: npt.NDArray[np.bool_] | None = None  # [num_reqs] draws at a temperature; told with it

    def __post_init__(self) -> None:
        self._ordered: (
            tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]] | None
        ) = None

    @classmethod
    def roots(
        cls,
        num_reqs: int,
        capacity: int,
        weight: npt.NDArray[np.float32] | None = None,
        max_nodes: npt.NDArray[np.int64] | None = None,
    ) -> "Candidates":
        """Roots alone, with room for `capacity` columns; `weight` None: all requests are alike."""
        columns: dict[str, Any] = {
            name: np.zeros((num_reqs, capacity), dtype) for name, dtype in COLUMNS.items()
        }
        for name, value in _ROOT.items():
            columns[name][:, 0] = value
        if weight is None:
            weight = np.ones(num_reqs, np.float32)
        size = np.ones(num_reqs, np.int64)
        return cls(**columns, size=size, weight=weight, max_nodes=max_nodes)

    @classmethod
    def closed_up(
        cls,
        room: dict[str, npt.NDArray[Any]],
        weight: npt.NDArray[np.float32] | None,
        max_nodes: npt.NDArray[np.int64] | None,
    ) -> "Candidates":
        """Candidates that were written with gaps between them and without roots.

        Args:
            room: [num_reqs, num_columns] by the names of `COLUMNS`; parents are columns, -1 is the
                root; a column of source -1 holds none.
        """
        num_reqs, num_columns = room["token"].shape
        closed = cls.roots(num_reqs, num_columns + 1, weight, max_nodes)
        close_up(
            tuple(np.ascontiguousarray(room[name], dtype) for name, dtype in COLUMNS.items()),
            closed.columns,
            closed.size,
        )
        return closed

    @property
    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """The arrays, as `COLUMNS` names them."""
        return tuple(getattr(self, name) for name in COLUMNS)

    def best_first(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Each request's candidates, best first.

        Returns:
            order: [num_reqs, columns] ids; the root first, parents before their children,
                ties by id. `columns` is the largest size; unused and ruled-out columns come last.
            sorted_path_prob: [num_reqs, columns] float32, never increasing, 0 where unused.
        """
        if self._ordered is None:
            self._ordered = best_first(self.path_prob, self.depth, self.size)
        return self._ordered[:2]

    def off_chain(self) -> npt.NDArray[np.float32]:
        """[num_reqs] path_prob of the best candidate that makes a tree of a chain; 0 if none does."""
        self.best_first()
        assert self._ordered is not None
        return self._ordered[2]

    def select(self, num_draft_nodes: _Ints) -> TreeBatch:
        """The best subtree of each request with the given number of draft nodes.

        Args:
            num_draft_nodes: [num_reqs], root excluded; capped by what the request allows and by the
                candidates there are.

        Returns:
            Trees as wide as the largest of them, padding zeroed.
        """
        order, prob = self.best_first()
        num_reqs, columns = order.shape
        if self.max_nodes is not None:
            num_draft_nodes = np.minimum(num_draft_nodes, self.max_nodes)
        num_nodes = np.minimum(np.asarray(num_draft_nodes) + 1, (prob > 0).sum(axis=1))
        width = int(num_nodes.max(initial=1))
        order = order[:, :width]
        nodes = np.arange(width, dtype=np.int32)
        is_node = nodes < num_nodes[:, None]
        rows = np.arange(num_reqs)[:, None]
        # Parents by their place in the tree instead of among the candidates.
        place = np.zeros((num_reqs, columns), np.int32)
        place[rows, order] = nodes
        fields = {name: getattr(self, name)[rows, order] * is_node for name in _TREE_COLUMNS}
        fields["parent"] = place[rows, self.parent[rows, order]] * is_node
        fields["parent"][:, 0] = -1
        return TreeBatch(**fields, num_nodes=num_nodes.astype(np.int32))
