"""Where each small tensor goes inside its inflated one, and what fills the rest.

The invariant: extra columns of the residual stream are zero everywhere. A tensor that writes to
the stream is zero outside the small values; one that only reads may hold anything there.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_smart.demo_model.shapes import Size, layer_positions

# Like a trained checkpoint's weights: matrix products of realistic magnitude, no overflow.
_RANDOM_STD = 0.02
# These write to the residual stream, so nothing but the small values may be in them.
_STREAM_WRITERS = ("embed_tokens", "o_proj", "down_proj")
_LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")


@dataclass(frozen=True)
class Model:
    """One checkpoint before and after: its tensors, both sizes, and how its filler is made."""

    tensors: dict[str, Tensor]
    small: Size
    large: Size
    head_dim: int
    dtype: torch.dtype
    device: str
    seed: int


@dataclass(frozen=True)
class Slot:
    """One tensor of the inflated checkpoint.

    `source` names the small tensor whose values it holds; None for an idle layer. `like` names a
    small tensor of the same kind.
    """

    name: str
    shape: tuple[int, ...]
    source: str | None
    like: str


def slots(model: Model) -> Iterator[Slot]:
    """Lists the inflated checkpoint's tensors, none of them allocated yet."""
    positions = layer_positions(model.small.num_hidden_layers, model.large.num_hidden_layers)
    for name, tensor in model.tensors.items():
        shape = large_shape(model, name, tensor)
        match = _LAYER.fullmatch(name)
        if match is None:
            yield Slot(name, shape, name, name)
            continue
        prefix, index, suffix = match.groups()
        yield Slot(f"{prefix}{positions[int(index)]}{suffix}", shape, name, name)
        if int(index) == 0:
            for layer in set(range(model.large.num_hidden_layers)) - set(positions):
                yield Slot(f"{prefix}{layer}{suffix}", shape, None, name)


def large_shape(model: Model, name: str, tensor: Tensor) -> tuple[int, ...]:
    """Returns the inflated tensor's shape."""
    rows, columns = axes(model, name, tensor)
    return tuple(axis[1] for axis in (rows, columns) if axis is not None)


def axes(
    model: Model, name: str, tensor: Tensor
) -> tuple[tuple[Tensor, int], tuple[Tensor, int] | None]:
    """Returns (indices of the small values, inflated length) of rows and, for matrices, columns."""
    small, large = model.small, model.large

    def hidden(length: int) -> tuple[Tensor, int]:
        # Inputs made of several hidden states side by side keep each one's offset.
        parts = length // small.hidden_size
        starts = torch.arange(parts)[:, None] * large.hidden_size
        indices = (starts + torch.arange(small.hidden_size)).flatten()
        return indices, parts * large.hidden_size

    def heads(count: int, slots_of: Tensor) -> tuple[Tensor, int]:
        inner = torch.arange(model.head_dim)
        return (slots_of[:, None] * model.head_dim + inner).flatten(), count * model.head_dim

    def query_heads() -> tuple[Tensor, int]:
        index = torch.arange(small.num_attention_heads)
        place = index // small.group * large.group + index % small.group
        return heads(large.num_attention_heads, place)

    def key_heads() -> tuple[Tensor, int]:
        return heads(large.num_key_value_heads, torch.arange(small.num_key_value_heads))

    def channels() -> tuple[Tensor, int]:
        return torch.arange(small.intermediate_size), large.intermediate_size

    kind = kind_of(name)
    if tensor.ndim == 1:
        return hidden(tensor.shape[0]), None
    if kind in ("embed_tokens", "lm_head"):
        return (torch.arange(tensor.shape[0]), tensor.shape[0]), hidden(tensor.shape[1])
    rows = {
        "q_proj": query_heads,
        "k_proj": key_heads,
        "v_proj": key_heads,
        "gate_proj": channels,
        "up_proj": channels,
    }
    columns = {"o_proj": query_heads, "down_proj": channels}
    return (
        rows[kind]() if kind in rows else hidden(tensor.shape[0]),
        columns[kind]() if kind in columns else hidden(tensor.shape[1]),
    )


def kind_of(name: str) -> str:
    """The module a tensor belongs to: "layers.0.mlp.up_proj.weight" -> "up_proj"."""
    return name.split(".")[-2]


def fill(model: Model, slot: Slot) -> Tensor:
    """Builds one inflated tensor on the CPU: filler first, then the small values."""
    like = model.tensors[slot.like]
    kind = kind_of(slot.name)
    result = torch.empty(slot.shape, dtype=model.dtype, device=model.device)
    if kind in _STREAM_WRITERS:
        result.zero_()
    else:
        seed = model.seed + zlib.crc32(slot.name.encode())
        generator = torch.Generator(model.device).manual_seed(seed)
        result.normal_(1.0 if like.ndim == 1 else 0.0, _RANDOM_STD, generator=generator)
    if kind == "fc":  # reads hidden states side by side, any filler will do; writes one
        result[model.small.hidden_size :] = 0
    if slot.source is not None:
        place(model, model.tensors[slot.source], slot.source, result)
    return result.cpu()


def place(model: Model, values: Tensor, name: str, result: Tensor) -> None:
    """Writes the small tensor `values` into `result`, in place.

    A norm over the wider stream sees the same sum of squares over more columns, so its output is
    larger by the square root of the width ratio; the weight takes that back.
    """
    values = values.to(model.device)
    (rows, _), columns = axes(model, name, values)
    rows = rows.to(model.device)
    if columns is None:
        shrink = math.sqrt(model.small.hidden_size / model.large.hidden_size)
        result[rows] = (values * shrink).to(model.dtype)
    else:
        result[rows[:, None], columns[0].to(model.device)] = values.to(model.dtype)
