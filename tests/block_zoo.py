"""Tiny targets with block drafters, DFlash and DSpark, by construction often right.

As in `tests.mtp_zoo`, a rotation R leads from each token's embedding to that of the token which follows
it where the target's layers say nothing. Heads of a drafter look by position alone. In the first layer,
head h looks h tokens back from the place that is to be predicted and says R^(h-1) of what stands there:
the root's token, what the target has said of an earlier one, or nothing at a mask. Near heads outweigh
far ones. So each place is drafted by the root and by what was before it, which contradict one another
where the target has left the rotation. In the second layer a head looks one place ahead and says R^-1
of what was said there: a block that sees only what is before it drafts badly, as its last place does.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import mtp_zoo, zoo

NUM_LOOKS, FADES = 6, 0.6  # tokens that are looked back, and what each further one counts
AHEAD = 2.5  # what the place ahead counts
MASK = 7  # token id that stands for one
_ROPE_BASE = 2.0  # under which the place h tokens back stands out from those beside it
_FOCUS = 6.0  # of each head on that place
_HEAD_SIZE, _KV_HEADS, _INNER = 32, 2, 64
METHODS = ("dflash", "dspark")
STRENGTH = {"o_proj": (2.5, 0.7), "down_proj": (0.7, 0.7)}  # of what both layers write


@dataclass(frozen=True)
class BlockTarget:
    """A target of block drafters.

    Attributes:
        config: class of its configuration in transformers.
        values: what differs from the zoo's shape.
        strength: of what both layers write, by part, where it is not `STRENGTH`.
    """

    config: str
    values: dict[str, Any] = field(default_factory=dict)
    strength: dict[str, tuple[float, float]] = field(default_factory=dict)


MODELS: dict[str, BlockTarget] = {
    "llama-blocks": BlockTarget("LlamaConfig"),
    "mistral-window-blocks": BlockTarget("MistralConfig", {"sliding_window": zoo.WINDOW}),
    "gpt-oss-blocks": BlockTarget("GptOssConfig", zoo.MODELS["gpt-oss"][1]),
}


def tiny_target(name: str, folder: Path) -> Path:
    """The checkpoint of the target called `name` in `MODELS`, made in `folder` unless it is there."""
    return _make(name, folder) / "target"


def tiny_drafter(name: str, method: str, folder: Path) -> Path:
    """Its drafter's, of one of `METHODS`; likewise."""
    return _make(name, folder) / method


def _make(name: str, folder: Path) -> Path:
    path = folder / name
    if path.exists():
        return path
    from safetensors.torch import save_file

    of = MODELS[name]
    scratch = path.with_suffix(".partial")
    target, strength = scratch / "target", STRENGTH | of.strength
    tensors, rotation = mtp_zoo.save_target(name, of.config, of.values, strength, target)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    zoo.add_tokenizer(target)
    for method in METHODS:
        (scratch / method).mkdir()
        drafter = _drafter(method, tensors, rotation)
        save_file(drafter, scratch / method / "model.safetensors", {"format": "pt"})
        config = json.dumps(_config(method, len(rotation)), indent=1)
        (scratch / method / "config.json").write_text(config)
        zoo.add_tokenizer(scratch / method)
    scratch.rename(path)
    return path


def _config(method: str, width: int) -> dict[str, Any]:
    config = {
        "model_type": "qwen3",
        "vocab_size": zoo.VOCAB_SIZE,
        "hidden_size": width,
        "intermediate_size": _INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": NUM_LOOKS * _KV_HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_SIZE,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": _ROPE_BASE},
        "attention_bias": True,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [0, 1]},
    }
    if method == "dflash":
        return {**config, "architectures": ["DFlashDraftModel"]}
    return {**config, "architectures": ["Qwen3DSparkModel"], "markov_rank": width}


def _drafter(method: str, target: mtp_zoo.Tensors, rotation: Any) -> mtp_zoo.Tensors:
    """Its weights. A DSpark's row says what comes after it, a DFlash's what stands there."""
    import torch

    width, looks = len(rotation), range(1, NUM_LOOKS + 1)
    embedding = target["model.embed_tokens.weight"].clone()
    embedding[MASK] = 0.0
    tensors = {
        "embed_tokens.weight": embedding,
        "fc.weight": 0.5 * torch.cat((torch.eye(width), torch.eye(width)), dim=1),
        "hidden_norm.weight": torch.ones(width),
        "norm.weight": torch.ones(width),
    }
    back = [look - (method == "dspark") for look in looks]
    power = torch.linalg.matrix_power
    said = [FADES ** (look - 1) * power(rotation, look - 1) for look in looks]
    tensors |= _layer(0, back, said)
    nothing = torch.zeros(width, width)
    # Of the other sign: what norms the keys of one layer by the weight of another looks elsewhere.
    ahead = [AHEAD * rotation.T] + [nothing] * (NUM_LOOKS - 1)
    tensors |= _layer(1, [-1] * NUM_LOOKS, ahead, sign=-1.0)
    if method == "dspark":
        tensors["markov_head.markov_w1.weight"] = embedding / mtp_zoo.EMBEDDING_SCALE
        tensors["markov_head.markov_w2.weight"] = 0.5 * target["lm_head.weight"]
    return {name: weight.contiguous() for name, weight in tensors.items()}


def _layer(number: int, back: list[int], said: list[Any], sign: float = 1.0) -> mtp_zoo.Tensors:
    """A layer whose heads look `back` so many tokens and say a matrix of `said` of what they see."""
    import torch

    width = len(said[0])
    queries = torch.cat([_looking(distance) for distance in back])
    # Half of what stands at a place comes by the heads of each key-value head.
    halves = [matrix[:, part : part + _HEAD_SIZE] for part in (0, _HEAD_SIZE) for matrix in said]
    attention = {
        "q_norm.weight": torch.full((_HEAD_SIZE,), sign * _FOCUS),
        "k_norm.weight": torch.full((_HEAD_SIZE,), sign),
        "q_proj.weight": torch.zeros(len(queries) * _KV_HEADS, width),
        "q_proj.bias": queries.repeat(_KV_HEADS),
        "k_proj.weight": torch.zeros(_KV_HEADS * _HEAD_SIZE, width),
        "k_proj.bias": _looking(0).repeat(_KV_HEADS),
        "v_proj.weight": torch.eye(width),
        "v_proj.bias": torch.zeros(width),
        "o_proj.weight": torch.cat(halves, dim=1),
        "o_proj.bias": torch.zeros(width),
    }
    others = {
        "input_layernorm.weight": torch.ones(width),
        "post_attention_layernorm.weight": torch.ones(width),
        "mlp.gate_proj.weight": torch.zeros(_INNER, width),
        "mlp.up_proj.weight": torch.zeros(_INNER, width),
        "mlp.down_proj.weight": torch.zeros(width, _INNER),
    }
    named = {**others, **{f"self_attn.{name}": weight for name, weight in attention.items()}}
    return {f"layers.{number}.{name}": weight for name, weight in named.items()}


def _looking(back: int) -> Any:
    """[_HEAD_SIZE] a query that fits best the key of `_looking(0)` `back` tokens before it."""
    import torch

    half = _HEAD_SIZE // 2
    angle = back * _ROPE_BASE ** -(torch.arange(half) / half)
    return torch.cat((angle.cos(), -angle.sin()))
