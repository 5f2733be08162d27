"""The rows of draft levels on the device: which nodes are run, where their KV goes, what they see.

The host says how many rows a level has, for all requests together; whose they are is decided here, by
value. Fixed shapes, no synchronisation, capturable: one graph serves all levels. `begin` and `take` are
the plain versions of what `triton_growth` runs.
"""

from dataclasses import dataclass

import torch

from vllm_smart.kernels.torch_growth import MASK_WORD_BITS, DeviceCandidates, Frontier
from vllm_smart.kernels.torch_select import count_best


@dataclass(frozen=True)
class DeviceLevel:
    """One draft forward, rows ordered by request; those from `row_start[-1]` on are only padding."""

    frontier: Frontier  # the nodes expanded; others of the level's frontier have probability 0
    row: torch.Tensor  # [num_reqs, width] int64 row of each frontier node; any row if not expanded
    req: torch.Tensor  # [num_rows] int64
    token: torch.Tensor  # [num_rows]
    position: torch.Tensor  # [num_rows] int64, root position plus depth
    slot_position: torch.Tensor  # [num_rows] int64, the position whose KV slot the row writes
    source: torch.Tensor  # [num_rows] int64, row of the parent in the forward before
    row_start: torch.Tensor  # [num_reqs + 1] int32
    seq_lens: torch.Tensor  # [num_reqs] int32, tree slots included
    tail_lens: torch.Tensor  # [num_reqs] int32, tree slots in use
    ancestor_mask: torch.Tensor  # [num_rows, words] int32, bits over the request's tree slots


@dataclass(frozen=True)
class DeviceDraftSlots:
    """The scratch KV of the drafter's trees: slot s of a request lies right after its prefix."""

    prefix_len: torch.Tensor  # [num_reqs] int64 position after the prefix, where the tree starts
    window_start: torch.Tensor  # [num_reqs] int64 first position of the prefix that the drafter sees
    capacity: torch.Tensor  # [num_reqs] int64 slots that each request may use
    used: torch.Tensor  # [num_reqs] int64
    # Of the forward before: first row of each request, and what its rows see of the tree.
    row_start: torch.Tensor  # [num_reqs + 1] int32
    mask: torch.Tensor  # [most rows of a level, words] int32, bits over slots

    @classmethod
    def room(
        cls, max_num_reqs: int, most_rows: int, max_slots: int, device: torch.device
    ) -> "DeviceDraftSlots":
        """Room for any batch, to be used by way of `of_first`.

        Args:
            max_num_reqs: most requests of a batch, those of padding included.
            most_rows: of a level of a batch, at least as many as requests.
            max_slots: most slots of a request.
            device: where all of it lies.
        """
        words = max(1, -(-max_slots // MASK_WORD_BITS))
        of_reqs = [torch.zeros(max_num_reqs, dtype=torch.int64, device=device) for _ in range(4)]
        row_start = torch.zeros(max_num_reqs + 1, dtype=torch.int32, device=device)
        mask = torch.zeros(most_rows, words, dtype=torch.int32, device=device)
        return cls(*of_reqs, row_start, mask)

    def of_first(self, num_reqs: int) -> "DeviceDraftSlots":
        """The same room, of the first requests alone."""
        of_reqs = (self.prefix_len, self.window_start, self.capacity, self.used)
        return DeviceDraftSlots(
            *(each[:num_reqs] for each in of_reqs), self.row_start[: num_reqs + 1], self.mask
        )

    def begin(
        self, prefix_len: torch.Tensor, window_start: torch.Tensor, capacity: torch.Tensor
    ) -> None:
        """Start with no slot taken; the forward before has one row per request, its root's.

        Args:
            prefix_len, window_start, capacity: [num_reqs] int64 as kept.
        """
        self.prefix_len.copy_(prefix_len)
        self.window_start.copy_(window_start)
        self.capacity.copy_(capacity)
        self.used.zero_()
        self.row_start.copy_(torch.arange(len(self.row_start), device=self.used.device))
        self.mask.zero_()

    def take(
        self,
        candidates: DeviceCandidates,
        level: torch.Tensor,
        active: torch.Tensor,
        weight: torch.Tensor,
        num_rows: int,
    ) -> DeviceLevel:
        """The best `num_rows` nodes of a level, each with a slot.

        Args:
            candidates: as grown so far.
            level: [1] int64 whose nodes are to be expanded, counted from 0.
            active: [num_reqs] bool, requests that may grow further.
            weight: [num_reqs] float32 what a token of each is worth.
            num_rows: rows of the forward; fewer nodes leave padding.
        """
        found = candidates.frontier(level)
        num_reqs, width = found.candidate.shape
        place = torch.arange(width, device=weight.device)
        allowed = active.unsqueeze(1) & (place < (self.capacity - self.used).unsqueeze(1))
        prob = torch.where(allowed, found.path_prob, 0.0)
        taken = prob > 0
        count = taken.sum(dim=1)
        if num_rows < num_reqs * width:
            # Best first within a request, ties by place: what is taken of each is a prefix.
            count = count_best(prob * weight.unsqueeze(1), num_rows)
            taken = place < count.unsqueeze(1)
        row_start = torch.nn.functional.pad(count.cumsum(0), (1, 0))

        index = torch.arange(num_rows, device=weight.device)
        req = torch.searchsorted(row_start[1:], index, right=True).clamp(max=num_reqs - 1)
        at = (index - row_start[req]).clamp(max=width - 1)
        column = found.candidate[req, at]
        is_row = index < row_start[-1]
        # Padding may have a parent that was never run.
        source = self.row_start[req] + column % candidates.level_columns // candidates.children
        source = source.clamp(max=len(self.mask) - 1)
        slot = self.used[req] + at
        mask = self.mask[source] | _bits(slot, self.mask.shape[1])
        self.used.add_(count)
        self.row_start.copy_(row_start)
        self.mask[:num_rows] = mask
        return DeviceLevel(
            frontier=Frontier(found.candidate, torch.where(taken, prob, 0.0)),
            row=(row_start[:-1].unsqueeze(1) + place).clamp(max=num_rows - 1),
            req=req,
            token=candidates.token[req, column],
            position=torch.where(is_row, self.prefix_len[req] + level, 0),
            slot_position=self.prefix_len[req] + slot,
            source=source,
            row_start=row_start.int(),
            seq_lens=(self.prefix_len + self.used - self.window_start).int(),
            tail_lens=self.used.int(),
            ancestor_mask=mask,
        )


def _bits(slot: torch.Tensor, words: int) -> torch.Tensor:
    """[num_rows, words] int32 with bit `slot` [num_rows] set, of which padding may have none."""
    word = torch.arange(words, device=slot.device)
    bit = torch.ones_like(slot, dtype=torch.int32) << (slot % MASK_WORD_BITS).int()
    return torch.where((slot // MASK_WORD_BITS).unsqueeze(1) == word, bit.unsqueeze(1), 0)
