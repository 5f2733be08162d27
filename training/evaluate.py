"""Measures a trained pair: held-out loss, looping of greedy text, acceptance of each drafter.

Everything is computed in float32 from the bfloat16 weights on disk, the ones that are shipped.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import corpus
from training.heads import Eagle1Head, Eagle3Head, load_head
from training.model import Llama, load_llama
from training.train_target import held_out_loss

NUM_PROMPTS = 64
PROMPT_TOKENS = 64
NUM_TOKENS = 128
CHAIN_LENGTH = 5
NGRAM = 4
KINDS = ("eagle", "eagle3", "draft")


def held_out_prompt_ids(tokens: np.ndarray) -> Tensor:
    """Returns [NUM_PROMPTS, PROMPT_TOKENS] evenly spaced windows of the held-out text."""
    starts = np.linspace(0, len(tokens) - PROMPT_TOKENS, NUM_PROMPTS).astype(int)
    windows = np.stack([tokens[start : start + PROMPT_TOKENS] for start in starts])
    return torch.from_numpy(windows.astype(np.int64))


def loop_rate(continuations: Tensor) -> float:
    """Share of tokens that complete a 4-gram already generated in the same continuation."""
    repeated = 0
    for row in continuations.tolist():
        seen: set[tuple[int, ...]] = set()
        for end in range(NGRAM, len(row) + 1):
            gram = tuple(row[end - NGRAM : end])
            repeated += gram in seen
            seen.add(gram)
    return repeated / continuations.numel()


@torch.no_grad()
def head_matches(head: Eagle1Head | Eagle3Head, ids: Tensor) -> Tensor:
    """Returns [batch, roots, CHAIN_LENGTH] bool: is step k's guess the token that came?"""
    normed, streams = head.target(ids)
    roots = ids.shape[1] - CHAIN_LENGTH - 1
    matches = [
        logits.argmax(-1)[:, :roots] == ids[:, k + 1 : k + 1 + roots]
        for k, (logits, _) in enumerate(head.unroll(ids, normed, streams, CHAIN_LENGTH), start=1)
    ]
    return torch.stack(matches, dim=-1)


@torch.no_grad()
def draft_matches(draft: Llama, ids: Tensor) -> Tensor:
    """Like `head_matches`, for a draft model that reads tokens only."""
    hit = draft.logits(draft(ids)[0]).argmax(-1)[:, :-1] == ids[:, 1:]
    roots = ids.shape[1] - CHAIN_LENGTH - 1
    steps = [hit[:, k : k + roots] for k in range(1, CHAIN_LENGTH + 1)]
    return torch.stack(steps, dim=-1)


def acceptance(matches: Tensor) -> dict[str, object]:
    """Walks each greedy continuation as a chain of drafts would be verified.

    Returns:
        acceptance_length: 1 + accepted drafts per step.
        per_position: share of steps that accepted at least k drafts, k = 1..CHAIN_LENGTH.
    """
    accepted = matches.int().cumprod(-1).sum(-1).tolist()
    counts = []
    for row in accepted:
        position = PROMPT_TOKENS - 1
        while position < PROMPT_TOKENS + NUM_TOKENS - 1:
            counts.append(row[position])
            position += row[position] + 1
    steps = np.array(counts)
    per_position = [float((steps >= k).mean()) for k in range(1, CHAIN_LENGTH + 1)]
    return {
        "acceptance_length": round(1 + float(steps.mean()), 3),
        "per_position": [round(share, 3) for share in per_position],
    }


def drafter_matches(kind: str, models: Path, target: Llama, ids: Tensor) -> Tensor:
    if kind == "draft":
        return draft_matches(load_llama(models / kind), ids)
    head = Eagle1Head(target) if kind == "eagle" else Eagle3Head(target)
    load_head(head, models / kind)
    return head_matches(head, ids)


def evaluate(models: Path, cache: Path) -> dict[str, object]:
    """Returns every figure that the README quotes; drafters that are not there are left out."""
    _, _, held_tokens = corpus.prepare(cache)
    target = load_llama(models / "target").requires_grad_(False)
    nats = held_out_loss(target, held_tokens)
    ids = target.generate(held_out_prompt_ids(held_tokens), NUM_TOKENS + CHAIN_LENGTH + 1)
    results: dict[str, object] = {
        "held_out_nats_per_token": round(nats, 3),
        "held_out_bits_per_token": round(nats / math.log(2), 3),
        "loop_rate": round(loop_rate(ids[:, PROMPT_TOKENS : PROMPT_TOKENS + NUM_TOKENS]), 3),
    }
    for kind in KINDS:
        if (models / kind / "config.json").exists():
            results[kind] = acceptance(drafter_matches(kind, models, target, ids))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--results", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    text = json.dumps(evaluate(arguments.models, arguments.cache), indent=2)
    print(text)
    if arguments.results:
        arguments.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
