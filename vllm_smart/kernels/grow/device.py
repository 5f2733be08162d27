"""Growing trees as a device keeps them: fixed shapes, capturable.

Every level has room for all of its rows; rows that a request does not expand hold candidates of
probability 0. Levels are told by a tensor.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from vllm_smart.kernels.grow import NO_SOURCE
from vllm_smart.kernels.tree_attention import MASK_WORD_BITS


@dataclass(frozen=True)
class Frontier:
    """The nodes to expand next, [num_reqs, rows] each, best first."""

    candidate: torch.Tensor  # int64, column of the candidate; ROOT for roots
    path_prob: torch.Tensor  # float32, 0 where there is none to expand: its children are ruled out


@dataclass(frozen=True)
class DeviceCandidates:
    """All candidates of a batch by column: level by level, row by row of the level before.

    The first level has one row; its other columns are never used. What a column's depth and rank are
    stands in columns of their own, so that readers need not know how they are laid out.
    """

    num_levels: int  # below the root, at least 1
    width: int  # rows per request of a level
    children: int  # candidates of each row
    token: torch.Tensor  # [num_reqs, num_levels * width * children] int64
    parent: torch.Tensor  # int64 columns, ROOT on the first level
    depth: torch.Tensor  # int32
    rank: torch.Tensor  # int32 among siblings
    source: torch.Tensor  # int32, NO_SOURCE where there is no candidate
    path_prob: torch.Tensor  # float32, 0 where there is no candidate
    draft_prob: torch.Tensor  # float32, given the parent

    @classmethod
    def room(
        cls, max_num_reqs: int, num_levels: int, width: int, children: int, device: torch.device
    ) -> "DeviceCandidates":
        """Room for any batch; `of_first` are those of one, which `begin_growth` makes ready for a step.

        Args:
            max_num_reqs: most requests of a batch, those of padding included.
            num_levels: below the root.
            width: rows per request of a level.
            children: candidates of each row.
            device: where all of it lies.
        """
        shape = max_num_reqs, num_levels * width * children

        def zeros(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        column = torch.arange(shape[1], dtype=torch.int32, device=device)
        return cls(
            *(num_levels, width, children),
            token=zeros(torch.int64),
            parent=zeros(torch.int64),
            depth=(column // (width * children) + 1).repeat(max_num_reqs, 1),
            rank=(column % children).repeat(max_num_reqs, 1),
            source=zeros(torch.int32) + NO_SOURCE,
            path_prob=zeros(torch.float32),
            draft_prob=zeros(torch.float32),
        )

    def of_first(self, num_reqs: int) -> "DeviceCandidates":
        """The same room, of the first requests alone."""
        columns: dict[str, Any] = {name: each[:num_reqs] for name, each in self.columns.items()}
        return replace(self, **columns)

    @property
    def columns(self) -> dict[str, torch.Tensor]:
        """What is known of each candidate, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    @property
    def level_columns(self) -> int:
        """Columns of each level."""
        return self.width * self.children


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
        prefix_len, window_start, capacity, used = (
            torch.zeros(max_num_reqs, dtype=torch.int64, device=device) for _ in range(4)
        )
        row_start = torch.zeros(max_num_reqs + 1, dtype=torch.int32, device=device)
        mask = torch.zeros(most_rows, words, dtype=torch.int32, device=device)
        return cls(prefix_len, window_start, capacity, used, row_start, mask)

    def of_first(self, num_reqs: int) -> "DeviceDraftSlots":
        """The same room, of the first requests alone."""
        return DeviceDraftSlots(
            self.prefix_len[:num_reqs],
            self.window_start[:num_reqs],
            self.capacity[:num_reqs],
            self.used[:num_reqs],
            self.row_start[: num_reqs + 1],
            self.mask,
        )
