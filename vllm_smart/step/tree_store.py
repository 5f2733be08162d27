"""The trees proposed so far, kept by request-state slot until they are verified."""

import numpy as np

from vllm_smart.tree import TreeBatch

_FIELDS = ("token", "parent", "depth", "rank", "path_prob", "draft_prob", "source")


class TreeStore:
    """One tree per request-state slot, in arrays of `[max_num_reqs, max_nodes]`.

    A request that is skipped for a step keeps its tree; the scheduler may trim a tree's tail,
    which leaves a valid one (nodes are best-first). So nothing is cleared between steps: the
    number of nodes always comes from what was scheduled.
    """

    def __init__(self, max_num_reqs: int, max_nodes: int) -> None:
        shape = (max_num_reqs, max_nodes)
        self.token = np.full(shape, -1, np.int64)
        self.parent = np.zeros(shape, np.int32)
        self.depth = np.zeros(shape, np.int32)
        self.rank = np.zeros(shape, np.int32)
        self.path_prob = np.zeros(shape, np.float32)
        self.draft_prob = np.zeros(shape, np.float32)
        self.source = np.zeros(shape, np.int32)
        self.parent[:, 0] = -1
        self._roots: dict[int, TreeBatch] = {}

    def put(self, slots: np.ndarray, trees: TreeBatch) -> None:
        """Store `trees` (one per entry of `slots` [num_reqs]) in place of the slots' old ones."""
        width = trees.token.shape[1]
        for name in _FIELDS:
            getattr(self, name)[slots, :width] = getattr(trees, name)

    def get(self, slots: np.ndarray, num_nodes: np.ndarray) -> TreeBatch:
        """The first `num_nodes` [num_reqs] nodes (root included) of each slot's tree."""
        width = int(num_nodes.max())
        fields = {name: getattr(self, name)[slots, :width] for name in _FIELDS}
        return TreeBatch(num_nodes=num_nodes.astype(np.int32), **fields)

    def roots(self, num_reqs: int) -> TreeBatch:
        """Trees of a root alone, as `get` has them of any slots; not to be written to."""
        if num_reqs not in self._roots:
            slots = np.arange(num_reqs)
            self._roots[num_reqs] = self.get(slots, np.ones(num_reqs, np.int32))
        return self._roots[num_reqs]
