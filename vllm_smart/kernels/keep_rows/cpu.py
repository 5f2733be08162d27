"""Copies rows of hidden states on CPU cores, where several tensor operations would cost more."""

import numpy as np
import torch

from vllm_smart.kernels.cpu.launch import compiled_kernel


def keep_rows(kept: torch.Tensor, places: np.ndarray, hidden_states: list[torch.Tensor]) -> None:
    """Write rows of all `hidden_states`, side by side, into rows of `kept`.

    Args:
        kept: [num_places, sum of widths].
        places: [num_rows] rows of `kept`.
        hidden_states: [>= num_rows, width] each; their first rows count.
    """
    _copy_rows(places, *map(_bits, (kept, *hidden_states)))


def gather_rows(hidden_states: list[torch.Tensor], places: np.ndarray) -> torch.Tensor:
    """Rows of all `hidden_states` side by side, [num_rows, sum of widths].

    Args:
        hidden_states: [num_places, width] each.
        places: [num_rows] their rows.
    """
    width = sum(hidden.shape[1] for hidden in hidden_states)
    gathered = hidden_states[0].new_empty(len(places), width)
    _gather_rows(np.ascontiguousarray(places, np.int64), *map(_bits, (gathered, *hidden_states)))
    return gathered


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as a type that numba knows; it is only copied."""
    return tensor if tensor.dtype == torch.float32 else tensor.view(torch.int16)


@compiled_kernel
def _copy_rows(places, kept, *sources):
    begin = 0
    for source in sources:
        end = begin + source.shape[1]
        for row in range(len(places)):
            kept[places[row], begin:end] = source[row]
        begin = end


@compiled_kernel
def _gather_rows(places, gathered, *sources):
    begin = 0
    for source in sources:
        end = begin + source.shape[1]
        for row in range(len(places)):
            gathered[row, begin:end] = source[places[row]]
        begin = end
