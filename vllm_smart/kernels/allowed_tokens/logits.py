"""Masks of allowed tokens on rows of logits."""

import torch

from vllm_smart.kernels.allowed_tokens.cpu import RowMasks, rule_out


def masked(logits: torch.Tensor, masks: RowMasks | None, first: int = 0) -> torch.Tensor:
    """`logits` without what is not allowed, where they are those of the rows from `first` on.

    Args:
        logits: [num_rows, vocab_size] of any floating type; float32 ones are changed in place.
        masks: of some of the rows; None where everything is allowed.

    Returns:
        The same, float32 where anything is masked: -inf rules a token out.
    """
    if masks is None:
        return logits
    begin, end = masks.rows.searchsorted((first, first + len(logits)))
    if begin == end:
        return logits
    logits = logits.float().contiguous()
    rule_out(logits.numpy(), masks.rows[begin:end] - first, masks.masks[begin:end])
    return logits
