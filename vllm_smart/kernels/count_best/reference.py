"""The best of a batch by sorting, in plain torch; for tests."""

import torch

_INFINITE_BITS = int(torch.tensor(torch.inf).view(torch.int32))  # above every value, as ordered bits
_INDEX_BITS = 32


def count_best(values: torch.Tensor, total: int | torch.Tensor) -> torch.Tensor:
    """How many of each row's values are among the `total` best of all rows, zeros excluded.

    Ties go to the lower row, then to the lower column.

    Args:
        values: [num_rows, num_columns] float32, none negative.

    Returns:
        [num_rows] int32.
    """
    order, _ = best_first(values.reshape(1, -1), values.numel())
    # Places in the batch's order; scattering back gives each candidate its own.
    places = torch.arange(values.numel(), device=values.device).unsqueeze(0)
    place = torch.empty_like(order).scatter_(1, order, places).view_as(values)
    return ((place < total) & (values > 0)).sum(dim=1, dtype=torch.int32)


def best_first(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row, none negative, ties by index.

    Sorts packed integers, inverted value | index: a non-negative float's bits grow with it.

    Returns:
        Columns and values, [num_rows, <= count] each.
    """
    key = (_INFINITE_BITS - values.contiguous().view(torch.int32)).long() << _INDEX_BITS
    key = (key | torch.arange(values.shape[1], device=values.device)).sort(dim=1).values[:, :count]
    order = key & ((1 << _INDEX_BITS) - 1)
    return order, values.gather(1, order)
