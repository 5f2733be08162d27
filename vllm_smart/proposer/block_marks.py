"""Which blocks of the prefix cache the drafter has read, told once a step's outcome is known."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vllm_smart.proposer.backlog import Backlog


class TouchedBlocks(NamedTuple):
    """Blocks of the drafter's cache that hold positions of a step."""

    req: np.ndarray  # [num_blocks] batch index of the request of each
    place: np.ndarray  # [num_blocks] its place in the request
    block: np.ndarray  # [num_blocks] its id


class BlockMarks:
    """Notes for requests that will find the blocks of others in the prefix cache.

    Follows the scheduler's block ids itself: vLLM's own table of them is on the device.
    """

    def __init__(self, backlog: Backlog, max_num_reqs: int, max_num_blocks: int) -> None:
        """Args:
        backlog: where the notes are kept.
        max_num_reqs: request-state slots.
        max_num_blocks: most blocks of a request in the drafter's cache.
        """
        self._backlog = backlog
        self._table = np.zeros((max_num_reqs, max_num_blocks), np.int64)
        self._num_blocks = np.zeros(max_num_reqs, np.int64)
        self._touched: tuple[TouchedBlocks, ...] = ()

    def add_request(self, slot: int, blocks: Sequence[int]) -> None:
        """A request with these block ids was given `slot`."""
        self._num_blocks[slot] = 0
        self.add_blocks(slot, blocks)

    def add_blocks(self, slot: int, blocks: Sequence[int]) -> None:
        """The request in `slot` was given further blocks."""
        begin = self._num_blocks[slot]
        self._num_blocks[slot] = end = begin + len(blocks)
        self._table[slot, begin:end] = blocks

    def touch(self, slots: np.ndarray, which: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
        """Positions `start` to `end` [n] of requests `which` [n] may have become known.

        Args:
            slots: [num_reqs] request-state slots of the batch.
        """
        of, index = self._backlog.blocks_between(start, end)
        block = self._table[slots[which[of]], index]
        self._touched += (TouchedBlocks(which[of], index, block),)

    def take(self) -> tuple[TouchedBlocks, ...]:
        """What was touched since the last call, for `mark`."""
        touched, self._touched = self._touched, ()
        return touched

    def mark(self, slots: np.ndarray, end: np.ndarray, touched: tuple[TouchedBlocks, ...]) -> None:
        """Note which of the blocks touched in a step were read; the backlog knows how far.

        Args:
            slots: [num_reqs] request-state slots of the batch.
            end: [num_reqs] position after the last known one of each.
        """
        for req, index, block in touched:
            self._backlog.mark_blocks(slots[req], index, block, end[req])
