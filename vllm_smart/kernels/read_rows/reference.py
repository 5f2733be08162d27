"""The rows that a drafter reads in plain torch; for tests."""

import torch

from vllm_smart.kernels.read_rows import ReadRows, RowsToRead


def place_reads(
    reads: RowsToRead,
    known_end: torch.Tensor,
    path: torch.Tensor | None,
    all_tokens: torch.Tensor,
    token_shift: int,
    capacity: int,
    out: ReadRows,
) -> None:
    """As of `gpu`."""
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
    """As of `gpu`."""
    is_new = source >= 0
    out.copy_(rows[source.clamp(min=0)])
    if kept is not None:
        old = kept[(-1 - source).clamp(min=0)]
        out.copy_(torch.where(is_new.unsqueeze(1), out, old))
