"""A tree that goes on growing while its text does: its root moves along with the text.

Knows where the drafter keeps the keys and values of each node, not what is in there.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_BLOCKS = 129  # expanded nodes of a tree: 128 have a bit each in a row's mask
# Of an expanded node, at least: where none of those that were verified is right, a later one often is.
FEWEST_CHILDREN = 8
LEAST_PROB = 1e-4  # of the path to a node that is expanded

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Advance:
    """What a text that went on means for the drafter's KV cache.

    Its tree lies right after the text, in slots counted from there. What was in `source[i]` belongs
    into slot i, all at once; slots only fall, and keep their order. The first `num_read` of them are
    the text itself: its tokens need not be read again. The tree starts after these. A text that has
    not gone on moves nothing.
    """

    num_read: int
    source: _Ints  # [num_kept]


class GrownTree:
    """One request's candidates, expanded anywhere, whatever their depth.

    Node 0 is the root, the text's last token, which is in the drafter's cache before the tree. Children
    of a node are a block of nodes side by side; blocks lie in the order in which nodes were expanded.
    The node of block i is in slot i - 1, as the root has none.

    Attributes:
        num_blocks: nodes expanded, the root included; 0 while nothing is known below the root.
        token, prob, path_prob, depth: [capacity] of nodes; prob is what the draft says of a node after
            its parent, 0 where it may not be taken; path_prob is how likely the text comes there.
        first: [capacity] the first child of each node, -1 where it is not expanded.
        expanded: [most_blocks] the node of each block.
    """

    def __init__(self, children: int, most_blocks: int) -> None:
        """Args:
        children: of each expanded node.
        most_blocks: most expanded nodes.
        """
        self.children, self.most_blocks = children, most_blocks
        capacity = 1 + children * most_blocks
        self.token = np.full(capacity, -1, np.int32)
        self.prob = np.ones(capacity, np.float32)
        self.path_prob = np.ones(capacity, np.float32)
        self.depth = np.zeros(capacity, np.int32)
        self._parent = np.zeros(capacity, np.int32)
        self.first = np.full(capacity, -1, np.int32)
        self.expanded = np.zeros(most_blocks, np.int32)
        self.num_blocks = 0

    @property
    def size(self) -> int:
        """Nodes, the root included."""
        return 1 + self.children * self.num_blocks

    def of_blocks(self, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[num_blocks, children] a view of what `column` has of nodes."""
        return column[1 : self.size].reshape(self.num_blocks, self.children)

    def clear(self) -> None:
        """Nothing is known below the root any more."""
        self.first[: self.size] = -1
        self.num_blocks = 0

    def add(
        self,
        node: _Ints,
        token: npt.NDArray[np.int64],
        prob: npt.NDArray[np.float32],
        accepted: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Expand nodes.

        Args:
            node: [num_rows] none expanded yet; the root comes first of all.
            token, prob: [num_rows, children] best first.
            accepted: [num_rows, children] how likely each is taken; None: as the draft says.
        """
        begin, num_rows = self.num_blocks, len(node)
        end = begin + num_rows
        assert end <= self.most_blocks, "more than may be"
        self.num_blocks = end
        self.expanded[begin:end] = node
        self.first[node] = 1 + self.children * np.arange(begin, end)
        news = slice(1 + self.children * begin, self.size)
        self.token[news], self.prob[news] = token.reshape(-1), prob.reshape(-1)
        parent = np.repeat(node, self.children)
        self._parent[news] = parent
        self.depth[news] = self.depth[parent] + 1
        likely = prob if accepted is None else np.where(prob > 0, accepted, 0)
        self.path_prob[news] = self.path_prob[parent] * likely.reshape(-1)
        self.first[news] = -1

    def best(self, most: int, max_depth: int, least_prob: float) -> _Ints:
        """The likeliest nodes to expand next, best first, of all depths.

        Args:
            most: of them.
            max_depth: nodes as deep as this are not expanded.
            least_prob: nor those that are less likely to be reached.
        """
        most = min(most, self.most_blocks - self.num_blocks)
        known = slice(0, self.size)
        may = (self.first[known] < 0) & (self.depth[known] < max_depth)
        may &= self.path_prob[known] >= least_prob
        node = np.flatnonzero(may)
        if self.num_blocks == 0 or most <= 0:
            return node[:0]
        return node[np.argsort(-self.path_prob[node], kind="stable")[:most]]

    def rows(self, node: _Ints) -> tuple[_Ints, npt.NDArray[np.uint64]]:
        """Where nodes that are about to be expanded together lie, and what they see.

        Args:
            node: [num_rows] as they will be added.

        Returns:
            [num_rows] slots, and [num_rows, words] slots of each node and its ancestors, as bits.
        """
        slot = self.num_blocks - 1 + np.arange(len(node))
        words = max(1, -(-(self.most_blocks - 1) // 64))
        mask = np.zeros((len(node), words), np.uint64)
        row = np.arange(len(node))
        _set_bits(mask, row, slot)
        at = self._parent[node].astype(np.int64)
        while True:
            is_below = at > 0
            row, at = row[is_below], at[is_below]
            if not len(at):
                return slot, mask
            _set_bits(mask, row, self._slot(at))
            at = self._parent[at].astype(np.int64)

    def _slot(self, node: _Ints) -> _Ints:
        """[num_rows] slots of expanded nodes other than the root."""
        slots: _Ints = (self.first[node].astype(np.int64) - 1) // self.children - 1
        return slots

    def advance(self, text: npt.NDArray[np.int32]) -> Advance:
        """Move the root along a text; without candidates below its end the tree is cleared.

        Args:
            text: [num_tokens] that came after the root.
        """
        path: list[int] = []
        at = 0
        for token in text.tolist():
            first = int(self.first[at])
            if first < 0:
                break
            block = slice(first, first + self.children)
            found = np.flatnonzero((self.token[block] == token) & (self.prob[block] > 0))
            if not len(found):
                break
            at = first + int(found[0])
            path.append(at)
        read = np.array([node for node in path if self.first[node] >= 0], np.int64)
        slots = self._slot(read)
        if len(read) < len(text):
            self.clear()
            return Advance(len(read), slots)
        if not len(text):
            return Advance(0, slots)
        return Advance(len(read), np.concatenate((slots, self._plant(at))))

    def _plant(self, root: int) -> _Ints:
        """Make an expanded node the root; the slots of its expanded descendants, in order."""
        size, children = self.size, self.children
        is_kept = np.zeros(size, bool)
        is_kept[root] = True
        kept: list[int] = []
        for block, node in enumerate(self.expanded[: self.num_blocks].tolist()):
            if is_kept[node]:
                kept.append(block)
                is_kept[1 + children * block : 1 + children * (block + 1)] = True
        blocks = np.array(kept, np.int64)
        place = np.full(size, 0, np.int64)  # of nodes, from now on; the root's is 0
        for number, block in enumerate(kept):
            place[1 + children * block : 1 + children * (block + 1)] = (
                1 + children * number + np.arange(children)
            )
        depth, path_prob = int(self.depth[root]), self.path_prob[root]
        columns = {
            "token": self.of_blocks(self.token)[blocks],
            "prob": self.of_blocks(self.prob)[blocks],
            "path_prob": self.of_blocks(self.path_prob)[blocks] / path_prob,
            "depth": self.of_blocks(self.depth)[blocks] - depth,
            "_parent": place[self.of_blocks(self._parent)[blocks]],
        }
        expanded = place[self.expanded[blocks]]
        self.clear()
        self.num_blocks = len(blocks)
        for name, values in columns.items():
            getattr(self, name)[1 : self.size] = values.reshape(-1)
        self.first[: self.size] = -1
        self.expanded[: self.num_blocks] = expanded
        self.first[expanded] = 1 + children * np.arange(self.num_blocks)
        return blocks[1:] - 1


def _set_bits(mask: npt.NDArray[np.uint64], row: _Ints, bit: _Ints) -> None:
    mask[row, bit // 64] |= np.uint64(1) << (bit % 64).astype(np.uint64)
