"""One random launch of a kernel, and what a batch of requests looks like to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

POISON = -777


ADDRESS = torch.tensor(True)  # as a mask: addresses differ from run to run


@dataclass(frozen=True)
class Launch:
    """Arguments for one launch; the same for the Triton kernel and for its CPU version.

    Attributes:
        grid: the Triton grid.
        arguments: by our parameter names, in the kernel's order, constexprs last.
        pointees: tensors reached through addresses, also compared.
        unspecified: tensor name -> mask of elements that nobody reads, and either side may
            leave as it likes.
        tolerance: largest absolute or relative difference of floating-point results.
    """

    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    pointees: Mapping[str, torch.Tensor] = field(default_factory=dict)
    unspecified: Mapping[str, torch.Tensor] = field(default_factory=dict)
    tolerance: float = 0.0

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that may be written, by name."""
        arguments = {k: v for k, v in self.arguments.items() if isinstance(v, torch.Tensor)}
        return {**arguments, **self.pointees}

    def taking(self, before: str, **added: Any) -> "Launch":
        """The same with arguments added before one of them."""
        arguments: dict[str, Any] = {}
        for name, value in self.arguments.items():
            arguments |= {**added, name: value} if name == before else {name: value}
        return replace(self, arguments=arguments)


BuildLaunch = Callable[[np.random.Generator], Launch]


def poison(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """A tensor nobody has written to: NaN or a number that no kernel computes."""
    value = torch.nan if dtype.is_floating_point else POISON
    return torch.full(shape, value, dtype=dtype)


def integers(
    rng: np.random.Generator, low: Any, high: Any, shape: Any, dtype: torch.dtype = torch.int32
) -> torch.Tensor:
    """Uniform integers in [low, high)."""
    return torch.from_numpy(rng.integers(low, high, shape)).to(dtype)


def normals(rng: np.random.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits of a plausible scale."""
    return torch.from_numpy(rng.normal(scale=3.0, size=shape)).to(dtype)


def cumulative(lengths: np.ndarray, padded_len: int = 0) -> torch.Tensor:
    """[0, a, a + b, ...], its last element repeated up to `padded_len`."""
    total = np.concatenate([[0], np.cumsum(lengths)])
    return torch.from_numpy(np.pad(total, (0, max(padded_len - len(total), 0)), "edge")).int()


class Batch:
    """Requests in scattered state slots, some prefilling, some decoding with drafts."""

    max_num_reqs = 11
    max_model_len = 97
    max_num_tokens = 150
    num_steps = 4
    vocab_size = 1500

    def __init__(self, rng: np.random.Generator, num_reqs: int = 7) -> None:
        self.num_reqs = num_reqs
        self.idx_np = rng.permutation(self.max_num_reqs)[:num_reqs]
        self.idx_mapping = torch.from_numpy(self.idx_np)
        self.is_prefill = rng.random(num_reqs) < 0.4
        self.num_drafts = np.where(self.is_prefill, 0, rng.integers(0, self.num_steps + 1, num_reqs))
        # The first request always has drafts that end with its prompt.
        self.is_prefill[0], self.num_drafts[0] = False, 2
        self.num_logits = self.num_drafts + 1
        self.query_lens = np.where(self.is_prefill, rng.integers(1, 20, num_reqs), self.num_logits)
        self.query_start_loc = cumulative(self.query_lens, self.max_num_reqs + 1)
        self.cu_num_logits = cumulative(self.num_logits)
        self.num_tokens = int(self.query_lens.sum())
        self.total_num_logits = int(self.num_logits.sum())

        # Prompts end before, inside, at the end of, or behind a request's chunk: decoding
        # requests whose chunk begins in the prompt occur after a remote prefill.
        self.num_computed = rng.integers(1, 30, self.max_num_reqs)
        self.prefill_len = self.num_computed + rng.integers(-1, 4, self.max_num_reqs)
        prefilling = self.idx_np[self.is_prefill]
        spare = rng.integers(-2, 5, len(prefilling))
        chunk_end = self.num_computed[prefilling] + self.query_lens[self.is_prefill]
        self.prefill_len[prefilling] = np.maximum(chunk_end + spare, self.num_computed[prefilling] + 1)
        first = self.idx_np[0]
        self.prefill_len[first] = self.num_computed[first] + self.query_lens[0]
        self.seq_lens = poison(self.max_num_reqs)
        self.seq_lens[:num_reqs] = torch.from_numpy(self.num_computed[self.idx_np] + self.query_lens)

    def state(self, name: str) -> torch.Tensor:
        """A per-slot int32 tensor of this batch: `num_computed` or `prefill_len`."""
        return torch.from_numpy(getattr(self, name)).int()

    def expanded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """State slot and offset in its request of every logits row."""
        req = np.repeat(np.arange(self.num_reqs), self.num_logits)
        local_pos = np.arange(len(req)) - self.cu_num_logits.numpy()[req]
        return torch.from_numpy(self.idx_np[req]), torch.from_numpy(local_pos).int()

    def rows(self, per_req: np.ndarray) -> np.ndarray:
        """A per-request array repeated for each of its logits rows."""
        return np.repeat(per_req, self.num_logits)
