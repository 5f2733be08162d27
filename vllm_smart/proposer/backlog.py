"""What the drafter has not read yet: known tokens whose keys and values its cache lacks.

A step that does not draft leaves its tokens here, so that speculation can be off without any
forward of the drafter, and on again at the price of reading what was missed. A request that
missed more than is kept loses its earlier context: its drafter then sees a window that starts
at a block of its own cache.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vllm_smart.arrays import between, to_device
from vllm_smart.kernels.keep_rows.cpu import keep_rows

# Rows that a request can at least catch up on; up to a block more are kept to fill its block.
LEAST_KEPT = 64


@dataclass(frozen=True)
class UnreadRows:
    """Rows for the drafter to read, request by request, oldest first."""

    req: np.ndarray  # [num_rows] index among the requests asked for
    position: np.ndarray  # [num_rows]
    row_start: np.ndarray  # [num_reqs + 1] first row of each request, then num_rows
    first: np.ndarray  # [num_reqs] first position of each request
    end: np.ndarray  # [num_reqs] position after its last

    @classmethod
    def between(cls, first: np.ndarray, end: np.ndarray) -> "UnreadRows":
        """All positions from `first` to `end` [num_reqs] of each request, at least one."""
        count = end - first
        row_start = np.zeros(len(first) + 1, np.int64)
        np.cumsum(count, out=row_start[1:])
        req = np.repeat(np.arange(len(first)), count)
        position = np.arange(row_start[-1]) - (row_start[:-1] - first)[req]
        return cls(req, position, row_start, first, end)

    def num_from(self, position: np.ndarray) -> int:
        """Rows at `position` [num_reqs] of their request or after it."""
        return int(np.maximum(self.end - np.maximum(self.first, position), 0).sum())

    def parts(self, most: int) -> Iterator[tuple[int, "UnreadRows"]]:
        """These rows in runs of at most `most`, each with its first request; some may be cut."""
        num_rows = len(self.req)
        for begin in range(0, num_rows, most):
            end = min(begin + most, num_rows)
            first = int(np.searchsorted(self.row_start, begin, side="right")) - 1
            last = int(np.searchsorted(self.row_start, end))
            if (first, last, end - begin) == (0, len(self.first), num_rows):
                yield 0, self
                return
            shift = self.first[first:last] - self.row_start[first:last]
            yield (
                first,
                UnreadRows.between(
                    np.maximum(self.row_start[first:last], begin) + shift,
                    np.minimum(self.row_start[first + 1 : last + 1], end) + shift,
                ),
            )


class Backlog:
    """How far each request-state slot was read, and the hidden states of what was not.

    Attributes:
        read_to: [max_num_reqs] positions before this one are in the drafter's cache, from
        window_start: [max_num_reqs] on, which is a multiple of the block size.
        capacity: places of each slot in `hidden`, a ring by position.
        num_reread: rows before what is unread that are read once more, as far as they were kept.
        hidden: [>= max_num_reqs * capacity, width] of rows that were kept; None before there are any.
    """

    def __init__(
        self,
        max_num_reqs: int,
        block_size: int,
        num_blocks: int,
        hidden: torch.Tensor | None = None,
        first_held: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Start with nothing read.

        Args:
            max_num_reqs: request-state slots.
            block_size: tokens per block of the drafter's KV cache.
            num_blocks: blocks of that cache.
            hidden: [num_rows, width] memory for hidden states, where it must not be taken later; None,
                or too few rows: it is taken when it is first needed.
            first_held: of a step that computes from positions [num_reqs] on, the first positions whose
                blocks in the drafter's cache are their requests' still: those of layers with windows
                are given away once they are out of sight. None: all are.
        """
        self.block_size = block_size
        self.capacity = LEAST_KEPT + block_size
        self.read_to = np.zeros(max_num_reqs, np.int64)
        self.window_start = np.zeros(max_num_reqs, np.int64)
        is_enough = hidden is not None and len(hidden) >= max_num_reqs * self.capacity
        self.hidden = hidden if is_enough else None
        self.num_reread = 0
        self._first_held = first_held
        # [max_num_reqs] positions from this one on were computed for the request itself.
        self._computed_from = np.zeros(max_num_reqs, np.int64)
        # [num_blocks] whether the drafter has read all tokens of a block, for requests that find
        # it in the prefix cache.
        self._block_read = np.zeros(num_blocks, bool)

    def add_request(self, slot: int, num_cached: int, cached_blocks: np.ndarray) -> None:
        """A request whose first `num_cached` tokens lie in the target's cache already.

        Args:
            slot: its request-state slot.
            num_cached: tokens found in the prefix cache.
            cached_blocks: ids of the drafter's full blocks among them, in order.
        """
        unread = np.flatnonzero(~self._block_read[cached_blocks])
        self.window_start[slot] = (unread[-1] + 1 if len(unread) else 0) * self.block_size
        self.read_to[slot] = self._computed_from[slot] = num_cached

    def take_all_for_read(self) -> None:
        """A drafter that reads the target's cache sees whatever is found in the prefix cache."""
        self._block_read[:] = True

    def skip_to(self, slots: np.ndarray, position: np.ndarray) -> None:
        """Take what lies before `position` [num_reqs] for read."""
        self.read_to[slots] = np.maximum(self.read_to[slots], position)

    def num_unread(self, slots: np.ndarray, step_start: np.ndarray, end: np.ndarray) -> int:
        """How many rows `unread` would name, without those that are read once more."""
        return int((end - self._first_unread(slots, step_start)).sum())

    def unread(self, slots: np.ndarray, step_start: np.ndarray, end: np.ndarray) -> UnreadRows:
        """Rows before `end` that the drafter lacks; they count as read from now on.

        Args:
            slots: [num_reqs] request-state slots.
            step_start: [num_reqs] first position that the current step computed.
            end: [num_reqs] position after the last known one.
        """
        start = self._first_unread(slots, step_start)
        lost = start > self.read_to[slots]
        if lost.any():
            self.window_start[slots[lost]] = start[lost] // self.block_size * self.block_size
        self.read_to[slots] = end
        return UnreadRows.between(self._read_from(slots, step_start, start), end)

    def _first_unread(self, slots: np.ndarray, step_start: np.ndarray) -> np.ndarray:
        """[num_reqs] from where on the drafter can read: after what it has read, or what is kept."""
        start: np.ndarray = self.read_to[slots]
        oldest = step_start - self.capacity
        whole = -(-oldest // self.block_size) * self.block_size
        if self._first_held is not None:
            held = self._first_held(step_start)
            oldest, whole = np.maximum(oldest, held), np.maximum(whole, held)
        lost = oldest > start
        if lost.any():
            start[lost] = whole[lost]
        return start

    def _read_from(self, slots: np.ndarray, step_start: np.ndarray, start: np.ndarray) -> np.ndarray:
        """[num_reqs] `start`, or the first row before it that is read once more."""
        if not self.num_reread:
            return start
        again = np.maximum(start - self.num_reread, self.window_start[slots])
        earliest = np.maximum(self._computed_from[slots], step_start - self.capacity)
        if self._first_held is not None:
            earliest = np.maximum(earliest, self._first_held(step_start))
        first: np.ndarray = np.minimum(start, np.maximum(again, earliest))
        return first

    def keep(self, slots: np.ndarray, position: np.ndarray, hidden_states: list[torch.Tensor]) -> None:
        """Keep the hidden states of rows that are not read now.

        Args:
            slots: [num_rows] request-state slot of each.
            position: [num_rows] at most the newest `capacity` of a request.
            hidden_states: [>= num_rows, width] each; their first rows.
        """
        if self.hidden is None:
            width = sum(hidden.shape[1] for hidden in hidden_states)
            # Memory that is never written is never taken from the system.
            self.hidden = hidden_states[0].new_empty(len(self.read_to) * self.capacity, width)
        places = self._places(slots, position)
        if self.hidden.device.type == "cpu":
            keep_rows(self.hidden, places, hidden_states)
        else:
            hidden = torch.cat([hidden[: len(slots)] for hidden in hidden_states], dim=-1)
            self.hidden.index_copy_(0, to_device(places, hidden.device), hidden)

    def kept(self, slots: np.ndarray, position: np.ndarray) -> torch.Tensor:
        """Hidden states [num_rows, hidden_width] of rows that were kept."""
        assert self.hidden is not None
        return self.hidden[to_device(self._places(slots, position), self.hidden.device)]

    def _places(self, slots: np.ndarray, position: np.ndarray) -> np.ndarray:
        places: np.ndarray = slots * self.capacity + position % self.capacity
        return places

    def makes_unread(self, slots: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Indices of the requests for which `mark_blocks` has news, if nothing is read now.

        The others go on in a block of which it is known that it is not read.

        Args:
            slots: [num_reqs] request-state slots.
            start, end: [num_reqs] positions that the target has computed.
        """
        enters_block = (end - 1) // self.block_size > (start - 1) // self.block_size
        return np.flatnonzero(enters_block | (self.read_to[slots] >= start))

    def blocks_between(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Blocks that hold positions from `start` to `end` [num_reqs]: (request [n], index [n])."""
        return between(start // self.block_size, -(-end // self.block_size))

    def mark_blocks(
        self, slots: np.ndarray, index: np.ndarray, block: np.ndarray, end: np.ndarray
    ) -> None:
        """Note which blocks the drafter has read.

        Args:
            slots: [num_blocks] request-state slot of each.
            index: [num_blocks] its place in its request.
            block: [num_blocks] its id.
            end: [num_blocks] position after the last known one of its request.
        """
        begin = index * self.block_size
        last = np.minimum(begin + self.block_size, end)
        is_read = (begin >= self.window_start[slots]) & (last <= self.read_to[slots])
        self._block_read[block] = is_read & (begin < end)
