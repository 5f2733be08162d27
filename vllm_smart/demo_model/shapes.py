"""Which larger shapes a checkpoint can be inflated to without changing what it computes.

Knows `config.json` and arithmetic; tensors are `layout.py`'s business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vllm_smart.errors import ConfigError


@dataclass(frozen=True)
class Size:
    """The numbers of a Llama `config.json` that inflation changes."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Size:
        """Reads the size out of a parsed `config.json`."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})

    def scaled(self, width: int, num_layers: int | None = None) -> Size:
        """Returns this size with everything that is a width times `width`."""
        return Size(
            self.hidden_size * width,
            num_layers or self.num_hidden_layers,
            self.intermediate_size * width,
            self.num_attention_heads * width,
            self.num_key_value_heads * width,
        )

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads


def width_ratio(small: int, large: int) -> int:
    """Returns large / small, which must be a power of 4.

    Norm weights are divided by the square root of the ratio, so only then is the division a
    change of the exponent, exact in every floating-point format.

    Raises:
        ConfigError: if it is not a power of 4.
    """
    ratio = large // small if large > 0 else 0
    if ratio < 1 or ratio * small != large or 4 ** round(math.log(ratio, 4)) != ratio:
        fits = ", ".join(str(small * 4**power) for power in range(4))
        raise ConfigError(
            f"hidden_size={large}: not a power of 4 times the source's {small}, so the norms "
            f"could not be scaled exactly. Use one of {fits}."
        )
    return ratio


def check_fits(small: Size, large: Size) -> None:
    """Checks that every part of the small model has its place in the large one.

    Raises:
        ConfigError: naming the field, its value and the values that would do.
    """
    for name in ("num_hidden_layers", "intermediate_size", "num_key_value_heads"):
        least, given = getattr(small, name), getattr(large, name)
        if given < least:
            raise ConfigError(f"{name}={given}: the source has {least}. Use {least} or more.")
    heads, kv_heads = large.num_attention_heads, large.num_key_value_heads
    if heads % kv_heads or large.group < small.group:
        raise ConfigError(
            f"num_attention_heads={heads} with num_key_value_heads={kv_heads}: each key/value head "
            f"must serve the same number of query heads, at least the source's {small.group}. "
            f"Use num_attention_heads={kv_heads * small.group} or a larger multiple of {kv_heads}."
        )
    if large.hidden_size % heads:  # transformers demands it, though head_dim is given
        raise ConfigError(
            f"num_attention_heads={heads}: does not divide hidden_size={large.hidden_size}. "
            f"Use one of {_divisors(large.hidden_size, kv_heads * small.group, kv_heads)}."
        )


def _divisors(hidden_size: int, least: int, multiple: int) -> str:
    fits = range(least, hidden_size + 1, multiple)
    return ", ".join(str(heads) for heads in fits if hidden_size % heads == 0)


def layer_positions(small: int, large: int) -> list[int]:
    """Returns where each of the `small` real layers goes among `large`, evenly spread."""
    return [index * large // small for index in range(small)]


def remap_aux_layer_ids(layer_ids: list[int], small: int, large: int) -> list[int]:
    """Moves EAGLE-3's residual-stream ids to the same streams of the inflated target.

    Id i is the input of layer i, and the idle layers leave the stream as it is, so the input of
    the real layer's new place will do. The id after the last layer stays the one after the last.
    """
    starts = [*layer_positions(small, large), large]
    return [starts[layer_id] for layer_id in layer_ids]


def inflated_config(
    config: dict[str, Any], large: Size, dtype: str, target: tuple[int, int]
) -> dict[str, Any]:
    """Returns the `config.json` of the inflated checkpoint.

    Args:
        config: the source's parsed `config.json`.
        large: the size it gets.
        dtype: as in `config.json`, for example "bfloat16".
        target: the target's number of layers before and after, for EAGLE-3's layer ids.
    """
    ratio = width_ratio(config["hidden_size"], large.hidden_size)
    result = {
        **config,
        **vars(large),
        "rms_norm_eps": config["rms_norm_eps"] / ratio,
        "dtype": dtype,
    }
    aux_key = "eagle_aux_hidden_state_layer_ids"
    if aux_key in config:
        result[aux_key] = remap_aux_layer_ids(config[aux_key], *target)
    return result
