"""The tokens that noise favours, in plain torch; for tests."""

import numpy as np
import torch

from vllm_smart.kernels.coupled_tokens import GAIN, NUM_RIVALS, SamplingTerms


def coupled_tokens(
    logits: torch.Tensor,
    noise: torch.Tensor,
    slots: np.ndarray,
    terms: SamplingTerms,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As of `cpu`.

    Args:
        noise: [num_rows, vocab_size] of the target's samples.

    Returns:
        tokens and probabilities, and the scores of all tokens, -inf where one cannot be sampled.
    """
    temperature, top_k, top_p = (
        torch.from_numpy(of_slots[slots]) for of_slots in (terms.temperature, terms.top_k, terms.top_p)
    )
    logits = logits.float() / temperature[:, None]
    ordered, token = logits.sort(dim=-1, descending=True)
    rank = torch.arange(logits.shape[1])
    is_kept = ordered >= ordered.gather(1, top_k.long().clamp(max=len(rank))[:, None] - 1)
    mass = torch.where(is_kept, ordered, -torch.inf).softmax(dim=-1)
    is_kept &= (mass.cumsum(dim=-1) - mass < top_p[:, None]) | (top_p[:, None] >= 1)
    ordered = torch.where(is_kept, ordered, -torch.inf)
    kept = torch.full_like(logits, -torch.inf).scatter(1, token, ordered)
    scores = kept + noise
    best, tokens = scores.topk(min(count + NUM_RIVALS, len(rank)), dim=-1)
    gain = (GAIN * temperature.sqrt())[:, None]
    probs = ((best - best[:, :1]) * gain).softmax(dim=-1)
    is_token = best > -torch.inf
    beyond = (0, max(0, count - len(rank)))
    tokens, probs = torch.where(is_token, tokens, 0), torch.where(is_token, probs, 0.0)
    tokens, probs = (torch.nn.functional.pad(of[:, :count], beyond) for of in (tokens, probs))
    return tokens, probs, scores
