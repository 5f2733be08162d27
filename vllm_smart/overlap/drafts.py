"""The board of trees: what was grown below each text. The drafter writes it, the worker reads it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.overlap.grown_tree import GrownTree
from vllm_smart.overlap.memory import SharedMemory, checksum, rounded

_HEAD = np.dtype(
    [
        ("check", "<i8"),  # of all after it
        ("generation", "<i8"),
        ("base", "<i8"),  # length of the text below which the tree stands; its last token is the root
        ("num_blocks", "<i8"),
        ("is_done", "<i8"),  # whether nothing more is going to be expanded
    ]
)
NUM_LEVEL_TIMES = 12  # of 1, 2, 4, ... rows

# From what the draft says of siblings, and their depth, to how likely each is taken; [num] both.
AcceptFn = Callable[[npt.NDArray[np.float32], int], npt.NDArray[np.float32]]


class Miss(Enum):
    """Why there are no candidates below a text."""

    NO_DRAFTER = "no_drafter"  # it has ended, stands still or has not started
    LATE = "late"  # it has not come so far
    NOT_IN_TREE = "not_in_tree"  # the text went on otherwise
    NOT_EXPANDED = "not_expanded"  # as it was expected to, but nothing was drafted below


@dataclass(frozen=True)
class PublishedTree:
    """A tree as it was read. Node 0 is the root; `first[i]` is the first child of node i, or -1.

    The `children` of a node lie side by side, best first, and after it.
    """

    generation: int
    base: int
    is_done: bool
    children: int
    token: npt.NDArray[np.int32]  # [num_nodes]
    prob: npt.NDArray[np.float32]  # [num_nodes] what the draft says of each after its parent
    first: npt.NDArray[np.int32]  # [num_nodes]

    def below(self, text: npt.NDArray[np.int32]) -> int | Miss:
        """The node below which candidates are known, where a text has gone on.

        Args:
            text: [num_tokens] that came after the root.
        """
        at = 0
        for token in text.tolist():
            if self.first[at] < 0:
                return Miss.LATE if at == 0 else Miss.NOT_EXPANDED
            if (at := self.child(at, token)) < 0:
                return Miss.NOT_IN_TREE
        if self.first[at] < 0:
            return Miss.NOT_EXPANDED if at else Miss.LATE
        return at

    def child(self, node: int, token: int) -> int:
        """The node after `node` that has `token` and may be taken; -1 where there is none."""
        first = int(self.first[node])
        if first < 0:
            return -1
        block = slice(first, first + self.children)
        found = np.flatnonzero((self.token[block] == token) & (self.prob[block] > 0))
        return first + int(found[0]) if len(found) else -1

    def chance_of_hit(
        self, parent: npt.NDArray[Any], token: npt.NDArray[Any], accept: AcceptFn
    ) -> float:
        """How likely candidates are known where the text will have come to after a step.

        The text goes on along a path of the nodes that are verified, and a token further.

        Args:
            parent, token: [num_nodes] of the tree that is verified, below the root of this one, which
                is its node 0.
            accept: how likely tokens are to be taken.
        """
        place = [0]  # of each verified node here, or -1
        for above, at in zip(parent[1:].tolist(), token[1:].tolist(), strict=True):
            place.append(self.child(place[above], at) if place[above] >= 0 else -1)
        verified = set(place)
        chance, path_prob = 0.0, np.zeros(len(self.token))
        path_prob[0], depth = 1.0, np.zeros(len(self.token), np.int64)
        expanded = np.flatnonzero(self.first >= 0)
        for node in expanded[np.argsort(self.first[expanded])].tolist():  # those above come before
            if node and node not in verified:
                chance += float(path_prob[node])  # what is below it is not come to in one step
                continue
            block = slice(self.first[node], self.first[node] + self.children)
            depth[block] = depth[node] + 1
            path_prob[block] = path_prob[node] * accept(self.prob[block], int(depth[node]) + 1)
        return chance


class DraftBoard:
    """Trees by request-state slot, each with two places that are written in turn: one is whole."""

    def __init__(
        self, num_slots: int, children: int, most_blocks: int, vocab_size: int, fd: int | None = None
    ) -> None:
        """Args:
        num_slots: request-state slots.
        children: of each expanded node.
        most_blocks: most expanded nodes of a tree, the root included.
        vocab_size: tokens are below it.
        fd: of a board that another process has made.
        """
        self.children, self._vocab_size, self._most_blocks = children, vocab_size, most_blocks
        # Of each block: the node that it is below, then tokens, then probabilities.
        self._block = 1 + 2 * children
        width = _HEAD.itemsize // 4 + most_blocks * self._block
        width = rounded(4 * width) // 4
        num_bytes = 64 + rounded(8 * NUM_LEVEL_TIMES) + rounded(num_slots * 8) + num_slots * 8 * width
        self.memory = SharedMemory(num_bytes, fd)
        self._signs = self.memory.take((8,), np.int64)  # of life, and counters
        self.level_ns = self.memory.take((NUM_LEVEL_TIMES,), np.int64)  # [0]: 0 until it is ready
        self._turn = self.memory.take((num_slots,), np.int64)
        self._places = self.memory.take((num_slots, 2, width), np.int32)

    def beat(self) -> None:
        """The drafter is alive."""
        self._signs[0] = time.monotonic_ns()

    @property
    def silent_s(self) -> float:
        """For how long it has not said so; any number may stand there."""
        return (time.monotonic_ns() - int(self._signs[0])) / 1e9

    def count(self, num_levels: int, num_nodes: int, busy_ns: int) -> None:
        """The drafter has run `num_levels`, expanded `num_nodes` and taken `busy_ns`."""
        self._signs[1:4] += (num_levels, num_nodes, busy_ns)

    @property
    def counted(self) -> npt.NDArray[np.int64]:
        """[3] all that it has run: levels, nodes expanded, nanoseconds."""
        return self._signs[1:4].copy()

    @property
    def rehearses(self) -> bool:
        """Whether the drafter runs levels that mean nothing."""
        return bool(self._signs[4])

    @rehearses.setter
    def rehearses(self, rehearses: bool) -> None:
        self._signs[4] = rehearses

    def write(self, slot: int, generation: int, base: int, tree: GrownTree, is_done: bool) -> None:
        """Publish a tree."""
        turn, num_blocks = int(self._turn[slot]) + 1, tree.num_blocks
        place = self._places[slot, turn % 2]
        head = place[: _HEAD.itemsize // 4].view(_HEAD)
        end = _HEAD.itemsize // 4 + num_blocks * self._block
        blocks = place[_HEAD.itemsize // 4 : end].reshape(num_blocks, self._block)
        blocks[:, 0] = tree.expanded[:num_blocks]
        blocks[:, 1 : 1 + self.children] = tree.of_blocks(tree.token)
        blocks[:, 1 + self.children :] = tree.of_blocks(tree.prob).view(np.int32)
        head["generation"], head["base"] = generation, base
        head["num_blocks"], head["is_done"] = num_blocks, is_done
        head["check"] = checksum(place[2:end])
        self._turn[slot] = turn

    def read(self, slot: int) -> PublishedTree | None:
        """The latest tree; None where there is none that makes sense."""
        place = self._places[slot, int(self._turn[slot]) % 2].copy()
        head = place[: _HEAD.itemsize // 4].view(_HEAD)[0]
        num_blocks = int(head["num_blocks"])
        if not 0 <= num_blocks <= self._most_blocks:
            return None
        end = _HEAD.itemsize // 4 + num_blocks * self._block
        if int(head["check"]) != checksum(place[2:end]):
            return None
        blocks = place[_HEAD.itemsize // 4 : end].reshape(num_blocks, self._block)
        node, token = blocks[:, 0], blocks[:, 1 : 1 + self.children]
        prob = np.ascontiguousarray(blocks[:, 1 + self.children :]).view(np.float32)
        if not (self._are_nodes(node) and self._are_candidates(token, prob)):
            return None
        size = 1 + num_blocks * self.children
        first = np.full(size, -1, np.int32)
        first[node] = 1 + self.children * np.arange(num_blocks)
        return PublishedTree(
            int(head["generation"]),
            int(head["base"]),
            bool(head["is_done"]),
            self.children,
            np.concatenate((np.full(1, -1, np.int32), token.reshape(-1))),
            np.concatenate((np.ones(1, np.float32), prob.reshape(-1))),
            first,
        )

    def _are_nodes(self, node: npt.NDArray[np.int32]) -> bool:
        """Whether blocks are below a node before them, the first below the root, no two below one."""
        begin = 1 + self.children * np.arange(len(node))
        is_before = bool(((node >= 0) & (node < begin)).all())
        return is_before and (node[:1] == 0).all() and len(np.unique(node)) == len(node)

    def _are_candidates(self, token: npt.NDArray[np.int32], prob: npt.NDArray[np.float32]) -> bool:
        """Whether tokens exist, siblings that may be taken differ, and probabilities are some."""
        if not ((token >= 0) & (token < self._vocab_size)).all():
            return False
        if not ((prob >= 0) & (prob <= 1)).all():  # false of what is no number
            return False
        # What is ruled out may repeat a token; make each differ from all others.
        told = np.where(prob > 0, token, -1 - np.arange(self.children))
        told = np.sort(told, axis=1)
        return not (told[:, 1:] == told[:, :-1]).any()
