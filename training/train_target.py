"""Trains the demo target for a number of minutes: `python -m training.train_target --help`."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training import corpus
from training.model import Llama, LlamaShape, load_llama, save_llama
from training.optim import ClockSchedule, make_optimizers, take_step
from training.threads import ThreadTuner, autocast

TARGET_SHAPE = LlamaShape(
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=64,
)
# (from this share of the budget on, sequence length): long contexts are cheap at the end only.
LENGTHS = ((0.0, 512), (0.90, 1024), (0.96, 2048))


def sample_batch(
    tokens: np.ndarray, batch_tokens: int, length: int, generator: np.random.Generator
) -> Tensor:
    """Returns [batch_tokens / length, length + 1] int64 windows at random offsets."""
    starts = generator.integers(0, len(tokens) - length - 1, size=max(1, batch_tokens // length))
    windows = np.stack([tokens[start : start + length + 1] for start in starts])
    return torch.from_numpy(windows.astype(np.int64))


def next_token_loss(model: Llama, batch: Tensor) -> Tensor:
    """Mean cross entropy in nats. batch: [rows, length + 1]."""
    hidden, _ = model(batch[:, :-1])
    logits = model.logits(hidden)
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: Llama, tokens: np.ndarray, length: int = 512, rows: int = 64) -> float:
    """Mean loss in nats per token over `rows` evenly spaced windows."""
    starts = np.linspace(0, len(tokens) - length - 1, rows).astype(int)
    windows = np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int64)
    losses = [next_token_loss(model, part) for part in torch.from_numpy(windows).split(16)]
    return torch.stack(losses).mean().item()


def train(out: Path, cache: Path, minutes: float, batch_tokens: int, seed: int, resume: bool) -> None:
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    tokenizer, train_tokens, held_tokens = corpus.prepare(cache)
    model = load_llama(out) if resume else Llama(TARGET_SHAPE)
    optimizers = make_optimizers(model)
    base_length = LENGTHS[0][1]
    # Only the usual length is compiled: the others run too briefly to earn a compilation.
    compiled_loss = torch.compile(next_token_loss, dynamic=False)
    warm_up = sample_batch(train_tokens, batch_tokens, base_length, generator)
    with autocast():
        compiled_loss(model, warm_up).backward()
    schedule = ClockSchedule(optimizers, minutes)
    tuner = ThreadTuner()
    step, seen = 0, 0
    while schedule.progress < 1.0:
        length = max(size for start, size in LENGTHS if schedule.progress >= start)
        schedule.apply()
        loss_of = compiled_loss if length == base_length else next_token_loss
        with autocast():
            loss = loss_of(model, sample_batch(train_tokens, batch_tokens, length, generator))
        take_step(loss, optimizers)
        tuner.tick()
        step, seen = step + 1, seen + batch_tokens
        if step % 100 == 0:
            print(
                f"{schedule.progress:.3f} tokens {seen} loss {loss.item():.3f}"
                f" threads {torch.get_num_threads()}",
                flush=True,
            )
        if step % 500 == 0:
            save_llama(model, out)
    save_llama(model, out)
    corpus.save_tokenizer(tokenizer, out)
    nats = held_out_loss(model, held_tokens)
    print(f"tokens {seen} held-out {nats:.3f} nats = {nats / math.log(2):.3f} bits/token", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the weights in OUT")
    arguments = parser.parse_args()
    train(**vars(arguments))


if __name__ == "__main__":
    main()
