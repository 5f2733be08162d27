"""Distils one drafter from the trained target: `python -m training.train_drafters --help`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training import corpus
from training.heads import Eagle1Head, Eagle3Head, EagleHead, load_head, save_head
from training.model import Llama, LlamaShape, load_llama, save_llama
from training.optim import ClockSchedule, make_optimizers, take_step
from training.threads import ThreadTuner, autocast
from training.train_target import sample_batch

# Its width and heads are the target's, so that it can start from the target's own weights.
DRAFT_SHAPE = LlamaShape(
    hidden_size=192,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=64,
)
LENGTH = 256
# Of a generated sequence this much is prompt; the rest is the target's own greedy text.
PROMPT_TOKENS = 64
# From this share of the budget on, heads are also trained on their own hidden states.
UNROLL_FROM = 0.15
NUM_UNROLL_STEPS = 4
# Steps further down a chain are reached less often, so they weigh less.
STEP_WEIGHT = 0.8


@dataclass(frozen=True)
class Run:
    """The command line of one distillation."""

    kind: str
    target: Path
    out: Path
    cache: Path
    minutes: float
    batch_tokens: int
    num_generated: int
    seed: int
    resume: bool


def generated_text(target: Llama, tokens: np.ndarray, run: Run) -> Tensor:
    """Returns [num_generated, LENGTH + 1] sequences the target wrote, cached beside the corpus.

    Drafters are judged on such text. It is greedy, because that is how acceptance is measured.
    """
    path = run.cache / f"generated_{run.target.parent.name}_{run.num_generated}.pt"
    if not path.exists():
        generator = np.random.default_rng(run.seed)
        prompts = sample_batch(tokens, run.num_generated * PROMPT_TOKENS, PROMPT_TOKENS, generator)
        parts = []
        for rows in prompts[:, 1:].split(64):
            parts.append(target.generate(rows, LENGTH + 1 - PROMPT_TOKENS))
        torch.save(torch.cat(parts), path)
    return torch.load(path)


def divergence(draft_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Mean KL(target || draft) in nats; both [batch, length, vocab]."""
    draft = draft_logits.float().log_softmax(-1)
    target = target_logits.float().log_softmax(-1)
    return (target.exp() * (target - draft)).sum(-1).mean()


# Over this vocabulary it is most of a step's time unless it is fused.
compiled_divergence = torch.compile(divergence, dynamic=True)


def head_loss(head: EagleHead, ids: Tensor, num_steps: int) -> Tensor:
    """Weighted mean over chain steps: KL, and for EAGLE-1 half the distance of hidden states."""
    with torch.no_grad():
        normed, streams = head.target(ids)
        target_logits = head.target.logits(normed)
    losses, weights = [], []
    for k, (logits, hidden) in enumerate(head.unroll(ids, normed, streams, num_steps), start=1):
        loss = compiled_divergence(logits, target_logits[:, k:])
        if isinstance(head, Eagle1Head):
            loss = loss + 0.5 * F.smooth_l1_loss(hidden.float(), normed[:, k:].float())
        weights.append(STEP_WEIGHT ** (k - 1))
        losses.append(weights[-1] * loss)
    return torch.stack(losses).sum() / sum(weights)


def draft_loss(draft: Llama, target: Llama, ids: Tensor) -> Tensor:
    with torch.no_grad():
        target_logits = target.logits(target(ids)[0])
    return compiled_divergence(draft.logits(draft(ids)[0]), target_logits)


def draft_from_target(target: Llama) -> Llama:
    """A draft that starts as the target's embedding, norm, and first and last layer, MLPs cut."""
    draft = Llama(DRAFT_SHAPE)
    draft.embed_tokens.load_state_dict(target.embed_tokens.state_dict())
    draft.norm.load_state_dict(target.norm.state_dict())
    width = DRAFT_SHAPE.intermediate_size
    for layer, source in zip(draft.layers, (target.layers[0], target.layers[-1]), strict=True):
        weights = dict(source.state_dict())
        for name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
            weights[name] = weights[name][:width]
        weights["mlp.down_proj.weight"] = weights["mlp.down_proj.weight"][:, :width]
        layer.load_state_dict(weights)
    return draft


def make_drafter(
    kind: str, target: Llama, resume: Path | None
) -> tuple[torch.nn.Module, Callable[[Tensor, float], Tensor], Callable[[Path], None]]:
    """Returns the module, its loss of (ids, progress), and the function that saves it."""
    if kind == "draft":
        draft = draft_from_target(target) if resume is None else load_llama(resume)
        return (
            draft,
            lambda ids, progress: draft_loss(draft, target, ids),
            lambda folder: save_llama(draft, folder),
        )
    unroll_from = UNROLL_FROM if resume is None else 0.0
    head = Eagle1Head(target) if kind == "eagle" else Eagle3Head(target)
    if resume is not None:
        load_head(head, resume)
    return (
        head,
        lambda ids, progress: head_loss(head, ids, NUM_UNROLL_STEPS if progress >= unroll_from else 1),
        lambda folder: save_head(head, folder),
    )


def train(run: Run) -> None:
    torch.manual_seed(run.seed)
    generator = np.random.default_rng(run.seed)
    tokenizer, train_tokens, _ = corpus.prepare(run.cache)
    target = load_llama(run.target).requires_grad_(False)
    written = generated_text(target, train_tokens, run)
    module, loss_of, save = make_drafter(run.kind, target, run.out if run.resume else None)
    optimizers = make_optimizers(module)
    schedule = ClockSchedule(optimizers, run.minutes)
    tuner = ThreadTuner()
    rows = run.batch_tokens // LENGTH // 2
    step = 0
    while schedule.progress < 1.0:
        schedule.apply()
        text = sample_batch(train_tokens, rows * LENGTH, LENGTH, generator)
        own = written[torch.from_numpy(generator.integers(0, len(written), rows))]
        with autocast():
            loss = loss_of(torch.cat([text, own])[:, :LENGTH], schedule.progress)
        take_step(loss, optimizers)
        tuner.tick()
        step += 1
        if step % 50 == 0:
            print(f"{schedule.progress:.3f} step {step} loss {loss.item():.3f}", flush=True)
    save(run.out)
    if run.kind == "draft":
        corpus.save_tokenizer(tokenizer, run.out)
    print(f"{run.kind}: {step * rows * 2 * LENGTH} tokens", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["eagle", "eagle3", "draft"], required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--num-generated", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the weights in OUT")
    train(Run(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
