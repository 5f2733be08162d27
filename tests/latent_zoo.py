"""A tiny target with latent attention and its EAGLE-3 head, which has latent attention of its own.

As in `tests.mtp_zoo`, a rotation R leads from each token's embedding to that of the token which follows
it where the target's layers say nothing. The head's first layer looks up its own row, by a key that no
other row has, and writes the embedding that it is given and R times the hidden state that it is given.
Its second layer is a copy of the target's first one. So the head is right about as often as that layer
alone, needs both of its inputs in the right rows, and all of its cache.
"""

import json
from pathlib import Path
from typing import Any

from tests import mtp_zoo, zoo

NAME = "deepseek-v3-eagle3"
_HEADS, _HEAD_SIZE, _ROPE, _LATENT = 4, 32, 64, 512
# Beside what is written, the hidden state itself hardly counts.
_RESIDUAL = 0.05
_FOCUS = 10.0  # of each head on its own row


def tiny_target(folder: Path) -> Path:
    """The target's checkpoint, made in `folder` unless it is there."""
    return _make(folder) / "target"


def tiny_head(folder: Path) -> Path:
    """Its head's; likewise."""
    return _make(folder) / "eagle3"


def _make(folder: Path) -> Path:
    path = folder / NAME
    if path.exists():
        return path
    from safetensors.torch import save_file

    scratch = path.with_suffix(".partial")
    target, head = scratch / "target", scratch / "eagle3"
    tensors, rotation = mtp_zoo.save_target(
        NAME, "DeepseekV3Config", zoo.LATENT_V3, mtp_zoo.STRENGTH, target
    )
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    zoo.add_tokenizer(target)
    head.mkdir()
    save_file(_head(tensors, rotation), head / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config |= {
        "architectures": ["Eagle3DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "q_lora_rank": 2 * len(rotation),
        "draft_vocab_size": zoo.VOCAB_SIZE,
        "norm_before_residual": True,
        "num_aux_hidden_states": 2,
        "eagle_aux_hidden_state_layer_ids": [1, 2],
    }
    (head / "config.json").write_text(json.dumps(config, indent=1))
    zoo.add_tokenizer(head)
    scratch.rename(path)
    return path


def _head(target: mtp_zoo.Tensors, rotation: Any) -> mtp_zoo.Tensors:
    import torch

    width = len(rotation)
    nothing, same = torch.zeros(width, width), torch.eye(width)
    tensors = {
        "embed_tokens.weight": target["model.embed_tokens.weight"],
        "lm_head.weight": target["lm_head.weight"],
        "fc.weight": torch.cat((nothing, same), dim=1),
        "norm.weight": torch.ones(width),
        "midlayer.hidden_norm.weight": torch.full((width,), _RESIDUAL),
        "layers.1.hidden_norm.weight": torch.ones(width),
    }
    tensors |= {f"midlayer.{name}": weight for name, weight in _own_row(rotation).items()}
    first = "model.layers.0."
    copied = {name.removeprefix(first): of for name, of in target.items() if name.startswith(first)}
    tensors |= {f"layers.1.{name}": weight for name, weight in _as_wide_queries(copied).items()}
    return {name: weight.clone().contiguous() for name, weight in tensors.items()}


def _as_wide_queries(layer: mtp_zoo.Tensors) -> mtp_zoo.Tensors:
    """The target's layer with latents of queries as wide as the head's; the norm keeps their scale."""
    import torch

    width = layer["self_attn.q_a_proj.weight"].shape[1]
    narrow = len(layer["self_attn.q_a_proj.weight"])
    more = 2 * width - narrow
    wide = dict(layer)
    of = "self_attn.q_a_proj.weight"
    wide[of] = torch.cat((layer[of], torch.zeros(more, width)))
    of = "self_attn.q_a_layernorm.weight"
    wide[of] = torch.cat((layer[of] * (narrow / (2 * width)) ** 0.5, torch.ones(more)))
    of = "self_attn.q_b_proj.weight"
    wide[of] = torch.cat((layer[of], torch.zeros(len(layer[of]), more)), dim=1)
    return wide


def _own_row(rotation: Any) -> mtp_zoo.Tensors:
    """A layer that writes what it is given at a row: the embedding, and R times the hidden state."""
    import torch

    width = len(rotation)
    given = 2 * width
    # The hidden state comes scaled down.
    alike = torch.cat((torch.ones(width), torch.full((width,), 1 / _RESIDUAL))).diag()
    keys = torch.linalg.qr(torch.randn(given, given))[0].view(_HEADS, _HEAD_SIZE, given)
    queries = torch.zeros(_HEADS, _HEAD_SIZE + _ROPE, given)
    queries[:, :_HEAD_SIZE] = _FOCUS * keys
    written = torch.cat((torch.eye(width), rotation), dim=1)  # [width, given]
    values = torch.zeros(_HEADS, _HEAD_SIZE, given)
    values[: width // _HEAD_SIZE] = written.view(-1, _HEAD_SIZE, given)
    latent = torch.zeros(_LATENT + _ROPE, given)
    latent[:given] = alike
    # The norm makes as much larger what stands in so few of its numbers.
    key_values = torch.zeros(_HEADS, 2 * _HEAD_SIZE, _LATENT)
    key_values[..., :given] = (given / _LATENT) ** 0.5 * torch.cat((keys, values), dim=1)
    output = torch.zeros(width, _HEADS * _HEAD_SIZE)
    output[:, :width] = torch.eye(width)
    return {
        "input_layernorm.weight": torch.ones(width),
        "post_attention_layernorm.weight": torch.ones(width),
        "self_attn.q_a_proj.weight": alike,
        "self_attn.q_a_layernorm.weight": torch.ones(given),
        "self_attn.q_b_proj.weight": queries.flatten(0, 1),
        "self_attn.kv_a_proj_with_mqa.weight": latent,
        "self_attn.kv_a_layernorm.weight": torch.ones(_LATENT),
        "self_attn.kv_b_proj.weight": key_values.flatten(0, 1),
        "self_attn.o_proj.weight": output,
        "mlp.gate_proj.weight": torch.zeros(128, width),
        "mlp.up_proj.weight": torch.zeros(128, width),
        "mlp.down_proj.weight": torch.zeros(width, 128),
    }
