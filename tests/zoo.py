"""Tiny random models of many architectures, with drafters whose guesses are often right.

A model has two layers and the shipped tokenizer. Its weights are wide enough that its greedy text
varies, and that every layer and every cached key matters for it. Its drafter is the same model with a
little noise on its weights. Files are made once per folder, in a second or less.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from vllm_smart.demo_model import demo_model_paths

VOCAB_SIZE = 2048  # the shipped tokenizer's
WINDOW = 16  # of the models whose attention forgets
CHUNK = 32  # of those that forget all at once
NOISE = 0.03  # relative to a matrix's own spread: a drafter's first choice is right two times in three

_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": None,
    "q_lora_rank": None,
    "kv_lora_rank": 512,  # vLLM's kernel for CPUs knows this size alone
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
# As Kimi K2 has it.
LATENT_V3: dict[str, Any] = {
    **LATENT,
    "q_lora_rank": 48,
    "topk_method": "noaux_tc",
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}

# Name -> (class of its configuration in transformers, what differs from `_SHAPE`).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    # Causal attention over everything, one KV head size.
    "llama": ("LlamaConfig", {}),
    "llama-grouped-by-3": ("LlamaConfig", {"hidden_size": 96, "num_attention_heads": 6}),
    "llama-multi-query": ("LlamaConfig", {"num_key_value_heads": 1}),
    "llama-head-48": ("LlamaConfig", {"head_dim": 48}),
    "llama-head-80": ("LlamaConfig", {"head_dim": 80}),
    "llama-head-512": ("LlamaConfig", {"head_dim": 512, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2Config", {"num_attention_heads": 2}),
    "qwen3": ("Qwen3Config", {}),
    "qwen3-moe": ("Qwen3MoeConfig", {**_EXPERTS, "num_experts": 4}),
    "mixtral": ("MixtralConfig", _EXPERTS),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "olmo2": ("Olmo2Config", {}),
    "smollm3": ("SmolLM3Config", {}),
    "glm4": ("Glm4Config", {}),
    "granite": ("GraniteConfig", {}),
    "gemma": ("GemmaConfig", {"tie_word_embeddings": True}),
    "stablelm": ("StableLmConfig", {"num_attention_heads": 2, "head_dim": None}),
    "starcoder2": (
        "Starcoder2Config",
        {"num_attention_heads": 2, "sliding_window": None, "head_dim": None},
    ),
    "cohere": (
        "CohereConfig",
        {"num_attention_heads": 2, "head_dim": None, "tie_word_embeddings": True},
    ),
    "nemotron": ("NemotronConfig", {}),
    "gpt2": (
        "GPT2Config",
        {"num_attention_heads": 2, "head_dim": None, "tie_word_embeddings": True},
    ),
    "opt": (
        "OPTConfig",
        {
            "ffn_dim": 128,
            "word_embed_proj_dim": 64,
            "num_attention_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "falcon": (
        "FalconConfig",
        {"num_attention_heads": 2, "head_dim": None, "tie_word_embeddings": True},
    ),
    "gpt-neox": ("GPTNeoXConfig", {"num_attention_heads": 2}),
    # Windows.
    "mistral-window": ("MistralConfig", {"sliding_window": WINDOW}),
    "mistral-wide-window": ("MistralConfig", {"sliding_window": 4096}),
    "phi3-wide-window": ("Phi3Config", {"sliding_window": 4096}),
    "gemma2": ("Gemma2Config", {"sliding_window": WINDOW, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": WINDOW, "tie_word_embeddings": True}),
    "gemma3-wide-window": ("Gemma3TextConfig", {"sliding_window": 4096, "tie_word_embeddings": True}),
    "cohere2": ("Cohere2Config", {"sliding_window": WINDOW, "tie_word_embeddings": True}),
    "olmo3": ("Olmo3Config", {"sliding_window": WINDOW}),
    "gpt-oss": ("GptOssConfig", {**_EXPERTS, "sliding_window": WINDOW}),
    # Other attention than a growing cache of keys and values.
    "llama4": (
        "Llama4TextConfig",
        {
            **_EXPERTS,
            "num_experts_per_tok": 1,
            "attention_chunk_size": CHUNK,
            "intermediate_size_mlp": 128,
            "interleave_moe_layer_step": 2,
        },
    ),
    "bloom": (
        "BloomConfig",
        {"n_layer": 2, "n_head": 2, "num_attention_heads": 2, "tie_word_embeddings": True},
    ),
    "mpt": ("MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 2, "max_seq_len": 1024}),
    "deepseek-v2": ("DeepseekV2Config", LATENT),
    "qwen3-next": (
        "Qwen3NextConfig",
        {
            **_EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 64,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "granite-hybrid": (
        "GraniteMoeHybridConfig",
        {
            **_EXPERTS,
            "layer_types": ["mamba", "attention"],
            "num_attention_heads": 2,
            "head_dim": None,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "shared_intermediate_size": 128,
        },
    ),
    "mamba2": ("Mamba2Config", {"num_heads": 4, "head_dim": 32, "n_groups": 1}),
}


def config_of(name: str) -> Any:
    """The transformers configuration of the model called `name` in `MODELS`."""
    return config_with(*MODELS[name])


def config_with(cls: str, differences: dict[str, Any]) -> Any:
    """The transformers configuration of class `cls` for the zoo's shape, but for `differences`."""
    import transformers

    values = {**_SHAPE, **differences}
    if values["head_dim"] is None:  # told by the hidden size there
        del values["head_dim"]
    return getattr(transformers, cls)(**values)


def tiny_model(name: str, folder: Path, noise: float = 0.0) -> Path:
    """The checkpoint of the model called `name`, made in `folder` unless it is there.

    Args:
        name: a key of `MODELS`.
        folder: where checkpoints go, each in a folder of its own.
        noise: relative to the spread of each weight; the weights themselves do not depend on it.
    """
    path = folder / (name if not noise else f"{name}-drafter")
    if (path / "config.json").exists():
        return path
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(name)
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    widen(model)
    if noise:
        perturb(model, noise)
    scratch = path.with_suffix(".partial")
    model.save_pretrained(scratch)
    add_tokenizer(scratch)
    scratch.rename(path)
    return path


def tiny_drafter(name: str, folder: Path) -> Path:
    """A draft model for `tiny_model(name, folder)`."""
    return tiny_model(name, folder, noise=NOISE)


def add_tokenizer(path: Path) -> None:
    """Copy the shipped tokenizer into a checkpoint's folder."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model_paths()["target"] / file, path)


def widen(model: Any) -> None:
    """Weights under which layers outweigh the embedding that they are added to."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                continue
            is_embedding = any(part in name for part in ("embed", "wte", "wpe"))
            weight.normal_(0.0, 0.01 if is_embedding else 1.5 * weight.shape[-1] ** -0.5)


def perturb(model: Any, noise: float) -> None:
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)


def with_int8_weights(source: Path, folder: Path) -> Path:
    """The model in `source` with linear layers of int8: weights by channel, activations by token."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / f"{source.name}-int8"
    shutil.copytree(source, path)
    tensors = load_file(path / "model.safetensors")
    for name in [n for n in tensors if n.startswith("model.layers.") and tensors[n].dim() == 2]:
        weight = tensors[name].float()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[name.replace(".weight", ".weight_scale")] = scale
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**_INT8, "strategy": "channel", "dynamic": False},
                "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
            }
        },
    }
    (path / "config.json").write_text(json.dumps(config, indent=1))
    return path
