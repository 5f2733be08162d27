"""Muon for the matrices, AdamW for the rest, and a schedule that follows the wall clock."""

import time

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Pushes a matrix's singular values to about one (Newton-Schulz).

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """
    x = matrix.bfloat16()
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if is_tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, then an orthogonal step of a size that does not depend on the matrix's shape."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                buffer = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"])
                rows, columns = parameter.shape
                scale = max(1.0, rows / columns) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonalise(update), alpha=-group["lr"] * scale)


def make_optimizers(
    module: nn.Module, matrix_lr: float = 0.02, other_lr: float = 3e-3
) -> list[torch.optim.Optimizer]:
    """Embeddings and output heads count as "the rest": their rows are looked up, not mixed."""
    matrices, others = [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim == 2 and not name.startswith(("embed_tokens", "lm_head"))
        (matrices if is_matrix else others).append(parameter)
    adam = torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [Muon(matrices, lr=matrix_lr), adam]


def take_step(loss: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    """Backpropagates, steps every optimizer and clears the gradients."""
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class ClockSchedule:
    """Warm-up, plateau, linear decay to zero, measured in time so that a run ends when told to.

    `progress` is the elapsed share of the budget, 0..1; training is over when it reaches 1.
    """

    def __init__(
        self, optimizers: list[torch.optim.Optimizer], minutes: float, decay_share: float = 0.45
    ) -> None:
        self._groups = [g for optimizer in optimizers for g in optimizer.param_groups]
        self._base = [group["lr"] for group in self._groups]
        self._seconds = minutes * 60
        self._decay_share = decay_share
        self._start = time.monotonic()

    @property
    def progress(self) -> float:
        return min(1.0, (time.monotonic() - self._start) / self._seconds)

    def apply(self) -> float:
        """Sets every learning rate for the present moment and returns the factor."""
        progress = self.progress
        factor = min(1.0, progress / 0.01 + 0.05, (1 - progress) / self._decay_share)
        for group, base in zip(self._groups, self._base, strict=True):
            group["lr"] = base * factor
        return factor
