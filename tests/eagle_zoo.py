"""EAGLE and EAGLE-3 heads for targets of `tests.mtp_zoo`, by construction sometimes right.

Both know the rotation that leads from a token's embedding to the next one's. Their layer attends to a
cache of its own, as a Llama's does, and writes little.
"""

import json
from pathlib import Path
from typing import Any

from tests import zoo
from tests.mtp_zoo import EMBEDDING_SCALE, Tensors

STRENGTH = 0.3  # of what the layer writes
_SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": zoo.VOCAB_SIZE,
    "draft_vocab_size": zoo.VOCAB_SIZE,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
}


def tiny_head(method: str, target: Path) -> Path:
    """The checkpoint of a head beside its target's, made unless it is there.

    Args:
        method: "eagle" or "eagle3".
        target: a folder that `mtp_zoo.tiny_mtp_model` has made, of a model of two layers.
    """
    path = target.with_name(f"{target.name}-{method}")
    if (path / "config.json").exists():
        return path
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(6)
    weights = load_file(target / "model.safetensors")
    embedding, lm_head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    width = embedding.shape[1]
    rotation = torch.linalg.lstsq(embedding / EMBEDDING_SCALE, lm_head * width**0.5).solution
    if method == "eagle":
        tensors = _layer("layers.0.", width, width)
        tensors["fc.weight"] = torch.cat((0.75 * torch.eye(width), 0.5 * rotation), dim=1)
        del tensors["layers.0.input_layernorm.weight"]
    else:
        tensors = _layer("midlayer.", width, 2 * width)
        nothing = torch.zeros(width, 2 * width)
        tensors["fc.weight"] = torch.cat((nothing, rotation), dim=1)  # of the last of three
        tensors["midlayer.hidden_norm.weight"] = torch.ones(width)
        tensors["norm.weight"] = torch.ones(width)
        tensors["lm_head.weight"] = lm_head.clone()
    config: dict[str, Any] = {**_SHAPE, "hidden_size": width}
    if method == "eagle3":
        config["eagle_aux_hidden_state_layer_ids"] = [0, 1, 2]
    scratch = path.with_suffix(".partial")
    scratch.mkdir()
    save_file(tensors, scratch / "model.safetensors", {"format": "pt"})
    (scratch / "config.json").write_text(json.dumps(config, indent=1))
    zoo.add_tokenizer(scratch)
    scratch.rename(path)
    return path


def _layer(name: str, width: int, num_inputs: int) -> Tensors:
    """Random weights of a Llama's layer whose attention reads `num_inputs` numbers a row."""
    import torch

    head, inner = _SHAPE["head_dim"], _SHAPE["intermediate_size"]
    shapes = {
        "self_attn.q_proj": (2 * head, num_inputs),
        "self_attn.k_proj": (head, num_inputs),
        "self_attn.v_proj": (head, num_inputs),
        "self_attn.o_proj": (width, 2 * head),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    tensors = {
        f"{name}{part}.weight": torch.randn(shape) * shape[-1] ** -0.5 for part, shape in shapes.items()
    }
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"{name}{part}.weight"] *= STRENGTH
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{name}{norm}.weight"] = torch.ones(width)
    return tensors
