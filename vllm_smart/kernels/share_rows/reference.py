"""A step's rows of drafts shared out over its requests in plain torch; for tests."""

import torch

from vllm_smart.kernels.count_best.reference import count_best
from vllm_smart.kernels.share_rows import LEAST_VALUE


def share_out(value: torch.Tensor, slot: torch.Tensor, room: torch.Tensor, total: int) -> torch.Tensor:
    """As of `gpu`."""
    own = value[slot, 1:]
    place = torch.arange(own.shape[1], device=own.device)
    own = torch.where(place < room.unsqueeze(1), own.clamp(min=LEAST_VALUE), 0.0)
    return count_best(own, total)


def row_starts(counts: torch.Tensor, fixed: torch.Tensor, query_start: torch.Tensor) -> torch.Tensor:
    """As of `gpu`."""

    def starts(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(rows.cumsum(0), (1, 0)).int()

    num_reqs = len(counts)
    query_start[: num_reqs + 1] = starts(counts + fixed)
    query_start[num_reqs + 1 :] = query_start[num_reqs]
    return starts(counts + 1)
