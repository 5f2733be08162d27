"""How large a pair must be on this machine for speculation to pay.

A step of a small model is mostly the host's work, which a drafter has, too. One that streams weights
from memory for long enough checks several tokens in hardly more time than one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vllm_smart.demo_model.kept import PairShape
from vllm_smart.files import write_atomically

_HIDDEN_SIZE, _INTERMEDIATE_SIZE = 768, 3072
_FEWEST_LAYERS, _MOST_LAYERS = 24, 64
_STEP_MS = {"cpu": 40.0, "cuda": 8.0}  # of one token; much longer and the demonstration is a bore
# Weights that are timed: more than caches hold. As many rows as a tree of a single request often has.
_NUM_MATRICES, _TREE_ROWS = 64, 4
_TIMED_S = 0.4
_DRAFTERS_LAYERS = 4  # that all drafters and the embeddings take the room of


@dataclass(frozen=True)
class Sized:
    """The pair that suits this machine, and why."""

    shape: PairShape
    gb_per_s: float  # at which weights are read for one token
    tree_rows_cost: float  # a product of four rows, in products of one
    step_ms: float  # that torch's own products take for a token; vLLM's kernels may be faster
    num_bytes: int  # that the pair takes on disk, about


def load_sized(path: Path) -> Sized | None:
    """What was chosen before and kept at `path`; None where there is nothing of use."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Sized(**{**kept, "shape": PairShape(**kept["shape"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def save_sized(path: Path, sized: Sized) -> None:
    """Keep a choice: a machine that is busier at the next start must not get another pair."""
    write_atomically(path, json.dumps(asdict(sized), indent=1) + "\n")


def sized_for_this_machine() -> Sized:
    """Time products of a layer's size in each dtype, and choose; takes a few seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = ("bfloat16",) if device == "cuda" else ("bfloat16", "float32")
    timed = {dtype: products_ms(getattr(torch, dtype), device) for dtype in dtypes}
    # Where a CPU has no units for bfloat16, several rows in it take longer than in float32.
    dtype = min(timed, key=lambda dtype: timed[dtype][1])
    return suited(dtype, *timed[dtype], _STEP_MS[device])


def suited(dtype: str, one_row_ms: float, tree_rows_ms: float, step_ms: float) -> Sized:
    """The pair whose target takes about `step_ms` for one token, within bounds.

    Args:
        dtype: of its weights.
        one_row_ms, tree_rows_ms: as `products_ms` times them.
        step_ms: wanted.
    """
    itemsize = getattr(torch, dtype).itemsize
    num_bytes = _NUM_MATRICES * _HIDDEN_SIZE * _INTERMEDIATE_SIZE * itemsize
    heads, kv_heads = _HIDDEN_SIZE, _HIDDEN_SIZE // 3
    per_layer = _HIDDEN_SIZE * (2 * heads + 2 * kv_heads + 3 * _INTERMEDIATE_SIZE) * itemsize
    layer_ms = one_row_ms * per_layer / num_bytes
    num_layers = min(max(round(step_ms / layer_ms), _FEWEST_LAYERS), _MOST_LAYERS)
    return Sized(
        shape=PairShape(_HIDDEN_SIZE, num_layers, _INTERMEDIATE_SIZE, dtype),
        gb_per_s=num_bytes / one_row_ms / 1e6,
        tree_rows_cost=tree_rows_ms / one_row_ms,
        step_ms=num_layers * layer_ms,
        num_bytes=(num_layers + _DRAFTERS_LAYERS) * per_layer,
    )


def products_ms(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Milliseconds of one row, and of a small tree's rows, times more weights than caches hold."""
    # Written to, as memory that never was would be one page of zeros.
    weights = [
        torch.full((_INTERMEDIATE_SIZE, _HIDDEN_SIZE), 0.01, dtype=dtype, device=device)
        for _ in range(_NUM_MATRICES)
    ]

    def run(rows: torch.Tensor) -> None:
        for weight in weights:
            torch.nn.functional.linear(rows, weight)
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(num_rows: int) -> float:
        rows = torch.ones((num_rows, _HIDDEN_SIZE), dtype=dtype, device=device)
        return _fastest_ms(lambda: run(rows))

    with torch.inference_mode():
        return timed(1), timed(_TREE_ROWS)


def _fastest_ms(run: Callable[[], None]) -> float:
    """Of some runs: other work on the machine only ever adds time."""
    run()
    fastest, end = float("inf"), time.perf_counter() + _TIMED_S
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        fastest = min(fastest, now - start)
        if now > end:
            return fastest * 1e3
