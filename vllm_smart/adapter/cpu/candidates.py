"""The likeliest tokens of a few rows of logits, on CPU cores."""

import math

import numpy as np
import torch

from vllm_smart.mrv2_cpu.launch import compiled_kernel

# More logits than that are worth torch's vector instructions and threads.
MOST_LOGITS = 1 << 16


def top_candidates(
    logits: torch.Tensor, slots: torch.Tensor, temperature: torch.Tensor, num: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `num` likeliest tokens of each row and their probabilities; see `kernels.top_tokens`."""
    shape = (logits.shape[0], num)
    tokens, probs = np.empty(shape, np.int64), np.empty(shape, np.float32)
    _find_top(logits.float(), slots, temperature, tokens, probs)
    return tokens, probs


@compiled_kernel
def _find_top(logits, slots, temperature, tokens, probs):
    last = tokens.shape[1] - 1
    for row in range(len(logits)):
        top, ids = probs[row], tokens[row]
        top[:] = -np.inf
        ids[:] = 0
        for token in range(logits.shape[1]):
            value = logits[row, token]
            if value > top[last]:
                place = last
                while place > 0 and value > top[place - 1]:
                    top[place], ids[place] = top[place - 1], ids[place - 1]
                    place -= 1
                top[place], ids[place] = value, token
        scale = temperature[slots[row]]
        scale = 1 / scale if scale > 0 else np.float32(1)
        total = np.float32(0)
        best = top[0]
        for token in range(logits.shape[1]):
            total += math.exp((logits[row, token] - best) * scale)
        for place in range(last + 1):
            top[place] = math.exp((top[place] - best) * scale) / total
