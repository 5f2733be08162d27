"""A step's rows of drafts shared out over its requests: the plain version of `triton_share`."""

import torch

from vllm_smart.kernels.torch_select import count_best

LEAST_VALUE = 1e-30  # of a node that is none: still before where there is no room


def share_out(value: torch.Tensor, slot: torch.Tensor, room: torch.Tensor, total: int) -> torch.Tensor:
    """How many draft nodes of each request are verified, `total` together.

    The best of the batch; if there are too few, inert ones.

    Args:
        value: [num_slots, max_nodes] float32 what each node is worth, never increasing from the first
            draft on, 0 beyond a tree; roots first, whose values are not read.
        slot: [num_reqs] int64.
        room: [num_reqs] int32 most of each request, less than max_nodes, at least `total` together.
        total: at least 1.

    Returns:
        [num_reqs] int32.
    """
    own = value[slot, 1:]
    place = torch.arange(own.shape[1], device=own.device)
    own = torch.where(place < room.unsqueeze(1), own.clamp(min=LEAST_VALUE), 0.0)
    return count_best(own, total)


def row_starts(counts: torch.Tensor, fixed: torch.Tensor, query_start: torch.Tensor) -> torch.Tensor:
    """First logits row of each request; first query rows are written to `query_start`.

    Args:
        counts: [num_reqs] int32 draft nodes.
        fixed: [num_reqs] int32 other rows, roots included.
        query_start: [> num_reqs] int32, written; beyond the batch it is the number of rows.

    Returns:
        [num_reqs + 1] int32, a request's root and its draft nodes.
    """

    def starts(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(rows.cumsum(0), (1, 0)).int()

    num_reqs = len(counts)
    query_start[: num_reqs + 1] = starts(counts + fixed)
    query_start[num_reqs + 1 :] = query_start[num_reqs]
    return starts(counts + 1)
