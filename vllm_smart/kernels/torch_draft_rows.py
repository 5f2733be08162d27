"""The rows of draft levels on the device: which nodes are run, where their KV goes, what they see.

The host says how many rows a level has, for all requests together; whose they are is decided here, by
value. Fixed shapes, no synchronisation.
"""

from dataclasses import dataclass

import torch

from vllm_smart.kernels.torch_growth import MASK_WORD_BITS, DeviceCandidates, Frontier
from vllm_smart.kernels.torch_select import best_first


@dataclass(frozen=True)
class DeviceLevel:
    """One draft forward, rows ordered by request; those from `row_start[-1]` on are only padding."""

    frontier: Frontier  # the nodes expanded; others of the level's frontier have probability 0
    row: torch.Tensor  # [num_reqs, width] int64 row of each frontier node; any row if not expanded
    req: torch.Tensor  # [num_rows] int64
    token: torch.Tensor  # [num_rows] int64
    position: torch.Tensor  # [num_rows] int64, root position plus depth
    slot_position: torch.Tensor  # [num_rows] int64, the position whose KV slot the row writes
    source: torch.Tensor  # [num_rows] int64, row of the parent in the forward before
    row_start: torch.Tensor  # [num_reqs + 1] int32
    seq_lens: torch.Tensor  # [num_reqs] int32, tree slots included
    tail_lens: torch.Tensor  # [num_reqs] int32, tree slots in use
    ancestor_mask: torch.Tensor  # [num_rows, words] int32, bits over the request's tree slots


class DeviceDraftSlots:
    """The scratch KV of the drafter's trees: slot s of a request lies right after its prefix."""

    def __init__(
        self,
        prefix_len: torch.Tensor,
        capacity: torch.Tensor,
        max_slots: int,
        window_start: torch.Tensor,
    ) -> None:
        """Start with no slot taken; the forward before has one row per request, its root's.

        Args:
            prefix_len: [num_reqs] int64 position after the drafter's prefix, where its tree starts.
            capacity: [num_reqs] int64 slots that each request may use.
            max_slots: no capacity exceeds it.
            window_start: [num_reqs] int64 first position of the prefix that the drafter sees.
        """
        num_reqs, device = len(prefix_len), prefix_len.device
        words = max(1, -(-max_slots // MASK_WORD_BITS))
        self._prefix_len, self._window_start = prefix_len, window_start
        self._capacity = capacity
        self._used = torch.zeros_like(prefix_len)
        # Of the forward before: first row of each request, and what its rows see of the tree.
        self._row_start = torch.arange(num_reqs + 1, device=device)
        self._mask = torch.zeros(num_reqs, words, dtype=torch.int32, device=device)

    def take(
        self,
        candidates: DeviceCandidates,
        level: int,
        active: torch.Tensor,
        weight: torch.Tensor,
        num_rows: int,
    ) -> DeviceLevel:
        """The best `num_rows` nodes of a level, each with a slot.

        Args:
            candidates: as grown so far.
            level: whose nodes are to be expanded, counted from 0.
            active: [num_reqs] bool, requests that may grow further.
            weight: [num_reqs] float32 what a token of each is worth.
            num_rows: rows of the forward; fewer nodes leave padding.
        """
        found = candidates.frontier(level)
        num_reqs, width = found.candidate.shape
        place = torch.arange(width, device=weight.device)
        allowed = active.unsqueeze(1) & (place < (self._capacity - self._used).unsqueeze(1))
        prob = torch.where(allowed, found.path_prob, 0.0)
        # Best first within a request, ties by place: what is taken of each is a prefix.
        best, value = best_first((prob * weight.unsqueeze(1)).view(1, -1), num_rows)
        taken = torch.zeros(1, num_reqs * width, dtype=torch.bool, device=weight.device)
        taken = taken.scatter_(1, best, value > 0).view(num_reqs, width)
        count = taken.sum(dim=1)
        row_start = torch.nn.functional.pad(count.cumsum(0), (1, 0))

        index = torch.arange(num_rows, device=weight.device)
        req = torch.searchsorted(row_start[1:], index, right=True).clamp(max=num_reqs - 1)
        at = (index - row_start[req]).clamp(max=width - 1)
        column = found.candidate[req, at]
        first = candidates.columns(level).start
        is_row = index < row_start[-1]
        # Padding may have a parent that was never run.
        source = self._row_start[req] + (column - first) // candidates.children
        source = source.clamp(max=len(self._mask) - 1)
        slot = self._used[req] + at
        mask = self._mask[source] | _bits(slot, self._mask.shape[1])
        self._used = self._used + count
        self._row_start, self._mask = row_start, mask
        return DeviceLevel(
            frontier=Frontier(found.candidate, torch.where(taken, prob, 0.0)),
            row=(row_start[:-1].unsqueeze(1) + place).clamp(max=num_rows - 1),
            req=req,
            token=candidates.token[req, column],
            position=torch.where(is_row, self._prefix_len[req] + level, 0),
            slot_position=self._prefix_len[req] + slot,
            source=source,
            row_start=row_start.int(),
            seq_lens=(self._prefix_len + self._used - self._window_start).int(),
            tail_lens=self._used.int(),
            ancestor_mask=mask,
        )


def _bits(slot: torch.Tensor, words: int) -> torch.Tensor:
    """[num_rows, words] int32 with bit `slot` [num_rows] set, of which padding may have none."""
    word = torch.arange(words, device=slot.device)
    bit = torch.ones_like(slot, dtype=torch.int32) << (slot % MASK_WORD_BITS).int()
    return torch.where((slot // MASK_WORD_BITS).unsqueeze(1) == word, bit.unsqueeze(1), 0)
