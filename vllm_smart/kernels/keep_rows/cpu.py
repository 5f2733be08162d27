"""Copies hidden states to where they are kept, on CPU cores: once per step while the drafter rests."""

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
