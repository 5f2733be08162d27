"""The shipped pair, inflated, with another kind of attention that says the same.

    python -m benchmarks.attention_pairs windows|latents SOURCE DESTINATION

SOURCE is a folder of `vllm-smart inflate`. So it can be measured what drafts gain on models with
windows or latents, with the acceptance of trained models and at the cost of large ones:

- windows: the target as a Mistral whose layers see 256 tokens. It was trained without windows, so texts
  should not be longer.
- latents: target and draft model as DeepSeek V2 has them. The shipped models have one head of keys,
  which becomes the rotary key that all heads share. A latent is the hidden state before the layer's
  norm has scaled it. All of these are equally long, so the latent's own norm changes that length alone.
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

WINDOW = 256
_LATENT, _NOPE = 512, 32  # as vLLM's kernels for CPUs want the first; the second says nothing here
_SMALL = 192  # of the shipped models' hidden sizes: all that is not zero in an inflated one

Tensors = dict[str, torch.Tensor]


def with_windows(source: Path, destination: Path) -> None:
    """Write a pair whose target has windows."""
    shutil.copytree(source, destination)
    path = destination / "target" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": WINDOW,
    }
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def with_latents(source: Path, destination: Path) -> None:
    """Write a target and a draft model with latent attention."""
    for name in ("target", "draft"):
        folder = destination / name
        folder.mkdir(parents=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name / file, folder / file)
        config = json.loads((source / name / "config.json").read_text(encoding="utf-8"))
        tensors = {}
        for shard in sorted((source / name).glob("*.safetensors")):
            with safe_open(shard, "pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(latent_tensors(tensors, config), folder / "model.safetensors", {"format": "pt"})
        content = json.dumps(latent_config(config), indent=1)
        (folder / "config.json").write_text(content + "\n", encoding="utf-8")


def latent_config(config: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Llama as a DeepSeek V2 without experts."""
    rotary = config["head_dim"]
    kept = {key: value for key, value in config.items() if key not in ("head_dim", "mlp_bias")}
    return kept | {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": None,
        "kv_lora_rank": _LATENT,
        "qk_nope_head_dim": _NOPE,
        "qk_rope_head_dim": rotary,
        "v_head_dim": rotary,
        "first_k_dense_replace": config["num_hidden_layers"],  # all
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "n_group": 1,
        "topk_group": 1,
        "tie_word_embeddings": False,
    }


def latent_tensors(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """A Llama's tensors as a DeepSeek V2's.

    Args:
        tensors: of an inflated shipped model: queries of its first group of heads alone are written to
            the stream, and of that the first columns alone are not zero.
        config: its `config.json`.
    """
    made = {}
    for layer in range(config["num_hidden_layers"]):
        of = f"model.layers.{layer}."
        attention = _latent_attention(
            *(tensors[f"{of}self_attn.{part}_proj.weight"] for part in ("q", "k", "v")),
            tensors[f"{of}input_layernorm.weight"],
            config,
        )
        made |= {f"{of}self_attn.{name}.weight": weight for name, weight in attention.items()}
    replaced = ("q_proj", "k_proj", "v_proj")
    made |= {key: weight for key, weight in tensors.items() if key.split(".")[-2] not in replaced}
    made["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    return {key: weight.contiguous() for key, weight in made.items()}


def _latent_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    norm: torch.Tensor,
    config: dict[str, Any],
) -> Tensors:
    heads, size, width = config["num_attention_heads"], config["head_dim"], config["hidden_size"]
    dtype = query.dtype
    query, key, value, norm = (each.double() for each in (query, key, value, norm))
    scale = norm[:_SMALL] * math.sqrt(width / _SMALL)  # as of the model before it was inflated
    # DeepSeek turns neighbours, Llama each number and the one half a head further.
    neighbours = torch.arange(size).view(2, -1).T.flatten()
    # Scores are divided by the root of what a head has, numbers that say nothing included.
    turned = query.view(heads, size, width)[:, neighbours] * math.sqrt((_NOPE + size) / size)
    queries = torch.cat((torch.zeros(heads, _NOPE, width, dtype=torch.double), turned), dim=1)
    down = torch.zeros(_LATENT + size, width, dtype=torch.double)
    down[:_SMALL, :_SMALL] = torch.diag(1.0 / scale)
    down[_LATENT:] = key[:size][neighbours]
    up = torch.zeros(heads, _NOPE + size, _LATENT, dtype=torch.double)
    # The latent's norm has made it as much longer.
    shrink = math.sqrt(_SMALL / _LATENT)
    up[:, _NOPE:, :_SMALL] = value[:size, :_SMALL] * scale * shrink
    weights = {
        "q_proj": queries.flatten(0, 1),
        "kv_a_proj_with_mqa": down,
        "kv_a_layernorm": torch.ones(_LATENT),
        "kv_b_proj": up.flatten(0, 1),
    }
    return {name: weight.to(dtype) for name, weight in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("windows", "latents"))
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    args = parser.parse_args()
    {"windows": with_windows, "latents": with_latents}[args.kind](args.source, args.destination)
    print(args.destination)


if __name__ == "__main__":
    main()
