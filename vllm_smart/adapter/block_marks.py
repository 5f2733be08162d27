"""Which blocks of the prefix cache the drafter has read, told once a step's outcome is known."""

from typing import NamedTuple

import numpy as np
import torch

from vllm_smart.adapter.arrays import HostCopy, to_device
from vllm_smart.adapter.backlog import Backlog
from vllm_smart.adapter.step_plan import StepResult


class TouchedBlocks(NamedTuple):
    """Blocks of the drafter's cache that hold positions of a step."""

    req: np.ndarray  # [num_blocks] batch index of the request of each
    index: np.ndarray  # [num_blocks] its place in the request
    block: HostCopy  # [num_blocks] its id


class BlockMarks:
    """Notes for requests that will find the blocks of others in the prefix cache."""

    def __init__(self, backlog: Backlog, block_table: torch.Tensor) -> None:
        """Args:
        backlog: where the notes are kept.
        block_table: [max_num_reqs, max_num_blocks] int32 the drafter's, by request-state slot.
        """
        self._backlog, self._table = backlog, block_table
        self._touched: tuple[TouchedBlocks, ...] = ()

    def touch(self, result: StepResult, which: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
        """Positions `start` to `end` [n] of requests `which` [n] may have become known."""
        of, index = self._backlog.blocks_between(start, end)
        slots = to_device(result.slots[which[of]], self._table.device)
        block = self._table[slots, to_device(index, self._table.device)]
        self._touched += (TouchedBlocks(which[of], index, HostCopy(block)),)

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
        for req, index, copy in touched:
            (block,) = copy.wait()
            self._backlog.mark_blocks(slots[req], index, block, end[req])
