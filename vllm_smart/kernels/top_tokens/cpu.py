"""The likeliest tokens of rows of logits in torch, as CPUs compute them."""

import torch


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
