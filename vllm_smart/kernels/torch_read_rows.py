"""The rows that a drafter reads, on the device: the plain version of `triton_read_rows`."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RowsToRead:
    """Requests whose drafter reads, [num_reqs] int64 each; positions from `first` on, one row each."""

    req: torch.Tensor  # batch index in the target's step
    slot: torch.Tensor  # request-state slot
    row_start: torch.Tensor  # first row of each
    num_rows: torch.Tensor  # at least 1, perhaps more than turn out to stand
    first: torch.Tensor  # first position that is read
    start: torch.Tensor  # first position that the target's step has computed
    root_row: torch.Tensor  # row of the root in the target's step
    root_position: torch.Tensor
    window_start: torch.Tensor  # first position that the drafter sees

    @classmethod
    def num_fields(cls) -> int:
        """How many arrays there are."""
        return len(cls.__dataclass_fields__)


@dataclass(frozen=True)
class ReadRows:
    """Where a forward of the drafter finds what it reads."""

    token: torch.Tensor  # [>= num_rows] int32, written by row
    position: torch.Tensor  # [>= num_rows] int64, written by row
    source: torch.Tensor  # [num_rows] int64 row of the target's step, or -1 - place of what was kept
    slot: torch.Tensor  # [num_reqs] int32 request-state slots
    query_start: torch.Tensor  # [num_reqs + 1] int32
    seq_lens: torch.Tensor  # [num_reqs] int32 tokens that the last row sees, itself included
    last_row: torch.Tensor  # [num_reqs] int64 last row that stands, the first where none does
    stands: torch.Tensor  # [num_reqs] int32, 0 where none does


def place_reads(
    reads: RowsToRead,
    known_end: torch.Tensor,
    path: torch.Tensor | None,
    all_tokens: torch.Tensor,
    token_shift: int,
    capacity: int,
    out: ReadRows,
) -> None:
    """Say what a drafter's rows read.

    Beyond a root the accepted path counts, wherever its nodes are in the target's step; beyond its end
    the root does, whose hidden states nobody reads there.

    Args:
        reads: of the batch.
        known_end: [num_reqs] int64 position after the last one that stands.
        path: [num_reqs of the step, columns] int32 nodes visited by the walk, -1 beyond, with a column
            for each depth that is read; None without drafts.
        all_tokens: [num_slots, max_len] int32.
        token_shift: a row takes the token so many positions behind its own.
        capacity: places of each slot in what was kept, a ring by position.
        out: written.
    """
    num_rows, num_reqs = len(out.source), len(reads.slot)
    row = torch.arange(num_rows, device=known_end.device)
    of = torch.searchsorted(reads.row_start + reads.num_rows, row, right=True)
    slot = reads.slot[of]
    position = reads.first[of] + row - reads.row_start[of]
    offset = position - reads.root_position[of]
    visited = torch.zeros_like(offset)
    if path is not None:
        visited = path[reads.req[of], offset.clamp(0, path.shape[1] - 1)].long().clamp(min=0)
    node = torch.where(offset > 0, visited, offset)
    out.token[:num_rows] = all_tokens[slot, position + token_shift]
    out.position[:num_rows] = position
    kept = -1 - (slot * capacity + position % capacity)
    out.source.copy_(torch.where(position >= reads.start[of], reads.root_row[of] + node, kept))
    out.slot.copy_(reads.slot)
    out.query_start[:num_reqs] = reads.row_start
    out.query_start[num_reqs] = num_rows
    out.seq_lens.copy_(reads.first + reads.num_rows - reads.window_start)
    place = known_end - 1 - reads.first
    out.last_row.copy_(reads.row_start + torch.minimum(place.clamp(min=0), reads.num_rows - 1))
    out.stands.copy_(place >= 0)


def gather_rows(
    rows: torch.Tensor, kept: torch.Tensor | None, source: torch.Tensor, out: torch.Tensor
) -> None:
    """Write to `out` [num_rows, width] what `source` of `ReadRows` names.

    Args:
        rows: [num_rows of the step, width] of the target's step.
        kept: [places, width] of steps before; None if no source is of them.
        source: [num_rows] int64.
    """
    is_new = source >= 0
    out.copy_(rows[source.clamp(min=0)])
    if kept is not None:
        old = kept[(-1 - source).clamp(min=0)]
        out.copy_(torch.where(is_new.unsqueeze(1), out, old))
