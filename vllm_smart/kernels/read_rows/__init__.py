"""What a drafter reads after the target's step: tokens, positions and hidden states, by row.

The host names the requests and positions; which of them stand, and where the accepted nodes' hidden
states lie, the device knows from the walk.
"""

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
