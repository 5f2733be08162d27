"""The likeliest tokens of rows of logits on CPU cores: in torch, and compiled for a few rows."""

import math

import numpy as np
import torch

from vllm_smart.kernels.cpu.launch import compiled_kernel

# More logits than that are worth torch's vector instructions and threads.
MOST_LOGITS = 1 << 16


def top_tokens(
    logits: torch.Tensor, temperature: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` likeliest tokens of each row and their probabilities.

    Which of equal logits come first, or at all, is left to `torch.topk`: ordering them costs CPUs
    three times as much as everything else here. Does not synchronise.

    Args:
        logits: [num_rows, vocab_size] bfloat16, float16 or float32; -inf rules a token out.
        temperature: [num_rows] float32, which shapes the probabilities; 0 is taken for 1.
        count: at least 1.

    Returns:
        tokens [num_rows, count] int64 and probabilities float32, best first. Ruled out tokens, and
        token 0 in places beyond the vocabulary, have probability 0; a row with NaN or without any
        finite logit has NaN.
    """
    scale = torch.where(temperature > 0, temperature, 1.0).unsqueeze(1)
    # By logits as they are: dividing them might make different ones equal.
    top, tokens = logits.topk(min(count, logits.shape[1]), dim=-1)
    probs = (top.float() / scale - (logits.float() / scale).logsumexp(-1, keepdim=True)).exp()
    beyond = (0, count - tokens.shape[1])
    return torch.nn.functional.pad(tokens, beyond), torch.nn.functional.pad(probs, beyond)


def top_candidates(
    logits: torch.Tensor, slots: torch.Tensor, temperature: torch.Tensor, num: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `num` likeliest tokens of each row and their probabilities."""
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
