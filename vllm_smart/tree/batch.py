"""Padded draft trees of a batch of requests.

Node 0 is the root: the last known token, at depth 0, not a draft. Node i >= 1 is draft token
i - 1 of vLLM's flat list. Nodes are best-first with parents before children, so that every prefix
of a tree is a tree.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TreeBatch:
    """One tree per request. Entries beyond `num_nodes` are padding and mean nothing.

    Padding keeps only one promise: its `parent`, too, is lower than its index.
    """

    token: npt.NDArray[np.int64]  # [num_reqs, max_nodes], root: -1 while unknown
    parent: npt.NDArray[np.int32]  # [num_reqs, max_nodes], -1 at the root
    depth: npt.NDArray[np.int32]  # [num_reqs, max_nodes], 0 at the root
    rank: npt.NDArray[np.int32]  # [num_reqs, max_nodes], 0 = the draft's top choice among siblings
    path_prob: npt.NDArray[np.float32]  # [num_reqs, max_nodes] in [0, 1], 1 at the root
    draft_prob: npt.NDArray[np.float32]  # [num_reqs, max_nodes] in [0, 1], given the parent
    source: npt.NDArray[np.int32]  # [num_reqs, max_nodes] who named it; see `proposer.source`
    num_nodes: npt.NDArray[np.int32]  # [num_reqs], root included, at least 1

    def prefix(self, num_nodes: npt.ArrayLike) -> "TreeBatch":
        """The first nodes of each tree, which are its best subtree of that size.

        Args:
            num_nodes: scalar or [num_reqs], root included, at least 1; more than a tree has
                takes all of it.

        Returns:
            Views of these arrays, as wide as the largest of the new trees.
        """
        kept = np.minimum(self.num_nodes, np.asarray(num_nodes, np.int32))
        width = int(kept.max(initial=1))
        return TreeBatch(
            token=self.token[:, :width],
            parent=self.parent[:, :width],
            depth=self.depth[:, :width],
            rank=self.rank[:, :width],
            path_prob=self.path_prob[:, :width],
            draft_prob=self.draft_prob[:, :width],
            source=self.source[:, :width],
            num_nodes=kept,
        )

    def is_node(self) -> npt.NDArray[np.bool_]:
        """[num_reqs, max_nodes] bool: which entries are nodes, the root included; not padding."""
        nodes: npt.NDArray[np.bool_] = np.arange(self.parent.shape[1]) < self.num_nodes[:, None]
        return nodes

    def is_chain(self) -> npt.NDArray[np.bool_]:
        """[num_reqs] bool: whether every node's parent is the node before it.

        A root alone is a chain.
        """
        index = np.arange(self.parent.shape[1], dtype=np.int32)
        linear = (self.parent == index - 1) | ~self.is_node()
        chains: npt.NDArray[np.bool_] = linear.all(axis=1)
        return chains

    def validate(self) -> None:
        """Raise AssertionError if a tree breaks an invariant. For tests; slow."""
        num_reqs, max_nodes = self.token.shape
        assert self.num_nodes.shape == (num_reqs,), "num_nodes has one entry per request"
        assert ((self.num_nodes >= 1) & (self.num_nodes <= max_nodes)).all(), "sizes in range"
        for name in ("parent", "depth", "rank", "path_prob", "draft_prob", "source"):
            assert getattr(self, name).shape == (num_reqs, max_nodes), f"shape of {name}"
        assert (self.parent[:, 0] == -1).all(), "the root has no parent"
        assert (self.parent[:, 1:] >= 0).all(), "only roots have no parent"
        assert (self.parent < np.arange(max_nodes)).all(), "parents come before children"
        for req in range(num_reqs):
            self._validate_one(req, int(self.num_nodes[req]))

    def _validate_one(self, req: int, num_nodes: int) -> None:
        parent, depth = self.parent[req], self.depth[req]
        prob, token = self.path_prob[req], self.token[req]
        assert depth[0] == 0, "the root is at depth 0"
        assert prob[0] == 1.0, "the root is certain"
        siblings: set[tuple[int, int]] = set()
        for node in range(1, num_nodes):
            assert depth[node] == depth[parent[node]] + 1, "depth grows by one per edge"
            assert 0.0 < prob[node] <= prob[parent[node]], "a path never grows likelier"
            assert prob[node] <= prob[node - 1], "nodes are best-first"
            assert 0.0 < self.draft_prob[req, node] <= 1.0, "draft_prob is a probability"
            assert self.rank[req, node] >= 0, "ranks count from 0"
            assert token[node] >= 0, "draft tokens are known"
            sibling = (int(parent[node]), int(token[node]))
            assert sibling not in siblings, "siblings carry distinct tokens"
            siblings.add(sibling)
