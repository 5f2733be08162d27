"""A tiny Gemma 4 with an assistant, by construction often right.

As in `tests.mtp_zoo`, a rotation leads from each token's embedding to that of the token which follows
it where the layers say nothing. The assistant takes the mean of the embedding that it is given and of
the rotated hidden state, then runs copies of the target's layers, which look at the target's keys and
values. So it needs both inputs, in the right rows, and the right part of the target's cache.
"""

import json
from pathlib import Path

from tests import mtp_zoo, zoo

NAME = "gemma4"
_LAYERS = 1.2  # of what each writes, beside embeddings of two
_TEXT = {
    "head_dim": 32,
    "global_head_dim": 64,
    "num_key_value_heads": 2,
    "sliding_window": zoo.WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}
_OWN = ("q_proj", "q_norm", "o_proj", "mlp", "layernorm", "layer_scalar")  # of an assistant's layer


def tiny_gemma4(folder: Path) -> Path:
    """The target's checkpoint, made in `folder` unless it is there."""
    return _make(folder) / "target"


def tiny_assistant(folder: Path) -> Path:
    """Its assistant's; likewise."""
    return _make(folder) / "assistant"


def _make(folder: Path) -> Path:
    path = folder / NAME
    if path.exists():
        return path
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(4)
    config = zoo.config_with("Gemma4TextConfig", _TEXT)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    zoo.widen(model)
    scratch = path.with_suffix(".partial")
    target, assistant = scratch / "target", scratch / "assistant"
    model.save_pretrained(target)
    tensors = load_file(target / "model.safetensors")
    for name, weight in tensors.items():
        if "post_attention_layernorm" in name or "post_feedforward_layernorm" in name:
            weight.fill_(_LAYERS)
    width = config.hidden_size
    rotation = mtp_zoo.rotate(tensors, width)
    tensors["model.embed_tokens.weight"] /= width**0.5  # which the model multiplies by
    save_file(tensors, target / "model.safetensors", {"format": "pt"})

    own = {
        name: weight.clone()
        for name, weight in tensors.items()
        if ".layers." in name and any(part in name for part in _OWN)
    }
    own |= {
        "model.embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
        "model.norm.weight": torch.ones(width),
        "lm_head.weight": tensors["lm_head.weight"].clone(),
        "pre_projection.weight": torch.cat((0.5 * torch.eye(width), rotation), dim=1),
        "post_projection.weight": torch.eye(width),
    }
    assistant.mkdir()
    save_file(own, assistant / "model.safetensors", {"format": "pt"})
    text = json.loads((target / "config.json").read_text())
    (assistant / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Gemma4AssistantForCausalLM"],
                "model_type": "gemma4_assistant",
                "backbone_hidden_size": width,
                "tie_word_embeddings": False,
                "text_config": text,
            },
            indent=1,
        )
    )
    for model_folder in (target, assistant):
        zoo.add_tokenizer(model_folder)
    scratch.rename(path)
    return path
