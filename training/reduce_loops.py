"""Teaches a trained target not to repeat itself in greedy text: sequence-level unlikelihood.

A model this small falls into loops however well it predicts the next token, and looping text would
flatter every drafter. Source: Welleck et al., arXiv 1908.04319; here each step mixes ordinary
next-token training with the penalty, on text the model has just written.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training import corpus
from training.evaluate import NGRAM
from training.model import Llama, load_llama, save_llama
from training.optim import ClockSchedule, make_optimizers, take_step
from training.threads import ThreadTuner, autocast
from training.train_target import held_out_loss, next_token_loss, sample_batch

PROMPT_TOKENS = 64
NUM_TOKENS = 144
# The optimizers' usual ratio of learning rates, embeddings and norms to matrices.
OTHER_LR_SHARE = 0.15


def repeats(continuations: Tensor) -> Tensor:
    """Marks tokens that complete a 4-gram already generated. [batch, length] int64 -> bool."""
    grams = continuations.unfold(1, NGRAM, 1)
    same = (grams[:, :, None] == grams[:, None]).all(-1)
    repeated = same.tril(-1).any(-1)
    return F.pad(repeated, (NGRAM - 1, 0))


def repetition_loss(model: Llama, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (mean of -log(1 - p) over repeats, share of repeats).

    The mean is over all generated tokens, so the pressure fades as the loops go.

    Args:
        model: the target.
        ids: [batch, PROMPT_TOKENS + length], prompts and what the model wrote.
    """
    marked = repeats(ids[:, PROMPT_TOKENS:]).float()
    hidden, _ = model(ids[:, :-1])
    logits = model.logits(hidden[:, PROMPT_TOKENS - 1 :]).float()
    log_prob = logits.log_softmax(-1).gather(-1, ids[:, PROMPT_TOKENS:, None]).squeeze(-1)
    unlikely = -torch.log1p(-log_prob.exp().clamp(max=1 - 1e-4))
    return (unlikely * marked).mean(), marked.mean()


def train(
    target: Path,
    cache: Path,
    minutes: float,
    batch_tokens: int,
    weight: float,
    matrix_lr: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    _, train_tokens, held_tokens = corpus.prepare(cache)
    model = load_llama(target)
    optimizers = make_optimizers(model, matrix_lr, OTHER_LR_SHARE * matrix_lr)
    schedule = ClockSchedule(optimizers, minutes)
    tuner = ThreadTuner()
    step = 0
    while schedule.progress < 1.0:
        schedule.apply()
        prompts = sample_batch(train_tokens, 32 * PROMPT_TOKENS, PROMPT_TOKENS, generator)
        written = model.generate(prompts[:, 1:], NUM_TOKENS)
        with autocast():
            text_loss = next_token_loss(model, sample_batch(train_tokens, batch_tokens, 512, generator))
            penalty, share = repetition_loss(model, written)
        take_step(text_loss + weight * penalty, optimizers)
        tuner.tick()
        step += 1
        if step % 5 == 0:
            print(
                f"{schedule.progress:.3f} step {step} loss {text_loss.item():.3f} "
                f"penalty {penalty.item():.3f} repeats {share.item():.3f}",
                flush=True,
            )
    save_llama(model, target)
    print(f"steps {step} held-out {held_out_loss(model, held_tokens):.3f} nats", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="read, then overwritten")
    parser.add_argument("--cache", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--batch-tokens", type=int, default=6144)
    parser.add_argument("--weight", type=float, default=2.0, help="of the penalty")
    parser.add_argument("--matrix-lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
