"""Tiny models that bring a head of their own for multi-token prediction, by construction often right.

A rotation R leads from each token's embedding to that of the token which follows it where the layers
say nothing. The layers shift the output enough that text varies and depends on what is cached. The
head takes the mean of the embedding that it is given and of R times the hidden state that it is given,
then runs a copy of the target's first layer, which outweighs the second. So it is right about as often
as that layer alone, and needs both of its inputs, in the right rows.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests import zoo

EMBEDDING_SCALE = 2.0  # beside layers' outputs of about one
STRENGTH = {"o_proj": (2.0, 0.5), "down_proj": (0.5, 0.5)}  # of what both layers write

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Names:
    """What a class of heads calls its weights in checkpoints.

    Attributes:
        norms: of the head, which scale by one.
        join: the matrix that joins its two inputs.
        norms_add_one: whether the head adds one to what is kept of them.
        embedding_first: whether the token's embedding is the first of them.
        block: before the names of its layer's weights.
    """

    norms: tuple[str, ...]
    join: str
    block: str
    embedding_first: bool = True
    norms_add_one: bool = False


@dataclass(frozen=True)
class MtpModel:
    """A target with a head.

    Attributes:
        config: class of its configuration in transformers.
        values: what differs from the zoo's shape.
        names: of the head's weights.
        architecture: what config.json says where it is not transformers' own class.
        extra: what config.json has besides.
        strength: what differs from `STRENGTH`.
        sharpness: of the logits.
        num_heads: alike, one for each further token.
        stem: before the names of the target's layers and its embedding.
        embedding: name of the latter.
    """

    config: str
    values: dict[str, Any]
    names: Names
    architecture: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    strength: dict[str, tuple[float, float]] = field(default_factory=dict)
    sharpness: float = 1.0
    num_heads: int = 1
    stem: str = "model."
    embedding: str = "embed_tokens"


_LAYER = "model.layers.2."
_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
}
MODELS: dict[str, MtpModel] = {
    "glm4-moe-mtp": MtpModel(
        "Glm4MoeConfig",
        {**_EXPERTS, "num_nextn_predict_layers": 1},
        Names(
            (f"{_LAYER}enorm", f"{_LAYER}hnorm", f"{_LAYER}shared_head.norm"),
            f"{_LAYER}eh_proj",
            _LAYER,
        ),
    ),
    **{
        name: MtpModel(
            config,
            {**values, "first_k_dense_replace": 0},
            Names(
                (f"{_LAYER}enorm", f"{_LAYER}hnorm", f"{_LAYER}shared_head.norm"),
                f"{_LAYER}eh_proj",
                _LAYER,
            ),
            extra={"num_nextn_predict_layers": 1},
        )
        for name, config, values in (
            (
                "glm4-moe-lite",
                "Glm4MoeLiteConfig",
                {**zoo.LATENT, "q_lora_rank": 48, "mlp_layer_types": ["sparse", "sparse"]},
            ),
            ("deepseek-v3", "DeepseekV3Config", zoo.LATENT_V3),
        )
    },
    "ernie4-5": MtpModel(
        "Ernie4_5_MoeConfig",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_intermediate_size": 64,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
        },
        Names(
            ("model.mtp_emb_norm.0", "model.mtp_hidden_norm.0"),
            "model.mtp_linear_proj.0",
            "model.mtp_block.0.",
        ),
        extra={"num_nextn_predict_layers": 1},
    ),
    "hy-v3": MtpModel(
        "HYV3Config",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "moe_intermediate_size": 64,
            "mlp_layer_types": ["sparse", "sparse"],
        },
        Names(
            (f"{_LAYER}enorm", f"{_LAYER}hnorm", f"{_LAYER}final_layernorm"),
            f"{_LAYER}eh_proj",
            _LAYER,
        ),
        extra={
            "num_nextn_predict_layers": 1,
            "expert_hidden_dim": 64,
            "first_k_dense_replace": 0,
            "qk_norm": True,
            "route_norm": True,
        },
    ),
    "exaone-moe": MtpModel(
        "ExaoneMoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "moe_intermediate_size": 64,
            "mlp_layer_types": ["dense", "sparse"],
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": zoo.WINDOW,
        },
        Names(
            ("mtp.norm", "mtp.pre_fc_norm_hidden", "mtp.pre_fc_norm_embedding"),
            "mtp.fc",
            "mtp.layers.0.",
        ),
        extra={"num_nextn_predict_layers": 1},
    ),
    "qwen3-next-mtp": MtpModel(
        "Qwen3NextConfig",
        {
            **zoo.MODELS["qwen3-next"][1],
            "layer_types": ["full_attention", "linear_attention"],
        },
        Names(
            ("mtp.norm", "mtp.pre_fc_norm_hidden", "mtp.pre_fc_norm_embedding"),
            "mtp.fc",
            "mtp.layers.0.",
            norms_add_one=True,
        ),
        extra={"num_nextn_predict_layers": 1},
        # Its attention has a gate, which halves it.
        strength={"o_proj": (4.0, 0.0), "out_proj": (0.0, 0.75), "down_proj": (0.5, 0.3)},
        sharpness=3.0,
    ),
    "nemotron-h": MtpModel(
        "NemotronHConfig",
        {
            "layers_block_type": ["full_attention", "linear_attention"],
            "mtp_layers_block_type": ["full_attention"],
            "ssm_state_size": 64,
            "mamba_num_heads": 2,
            "mamba_head_dim": 64,
            "n_groups": 1,
        },
        Names(
            tuple(f"mtp.layers.0.{norm}" for norm in ("enorm", "hnorm", "final_layernorm")),
            "mtp.layers.0.eh_proj",
            "mtp.layers.0.",
        ),
        extra={"num_nextn_predict_layers": 1},
        strength={"out_proj": (0.0, 0.5)},
        stem="backbone.",
        embedding="embeddings",
    ),
    "mimo": MtpModel(
        "Qwen2Config",
        {"num_attention_heads": 2, "head_dim": None},
        Names(
            tuple(
                f"model.mtp_layers.0.{norm}"
                for norm in ("token_layernorm", "hidden_layernorm", "final_layernorm")
            ),
            "model.mtp_layers.0.input_proj",
            "model.mtp_layers.0.",
            embedding_first=False,
        ),
        "MiMoForCausalLM",
        {"num_nextn_predict_layers": 1},
    ),
}


# vLLM looks up heads among the layers' types, so there are as many layers as heads.
THREE_LAYERS = {
    "num_hidden_layers": 3,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
MODELS |= {
    f"{name}-heads": replace(
        MODELS[name],
        values={key: value for key, value in MODELS[name].values.items() if "nextn" not in key} | more,
        extra={"num_nextn_predict_layers": 3, "mtp_layer_types": ["sliding_attention"] * 3},
        num_heads=3,
    )
    for name, more in (("glm4-moe-mtp", {}), ("exaone-moe", THREE_LAYERS))
}


def tiny_mtp_model(name: str, folder: Path) -> Path:
    """The checkpoint of the model called `name` in `MODELS`, made in `folder` unless it is there."""
    path = folder / name
    if (path / "config.json").exists():
        return path
    from safetensors.torch import save_file

    of = MODELS[name]
    scratch = path.with_suffix(".partial")
    tensors, rotation = save_target(name, of.config, of.values, STRENGTH | of.strength, scratch)
    tensors["lm_head.weight"] *= of.sharpness
    tensors |= _heads(of, tensors, rotation)
    tensors[f"{of.stem}{of.embedding}.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, scratch / "model.safetensors", {"format": "pt"})
    config = json.loads((scratch / "config.json").read_text()) | of.extra
    del config["dtype"]  # which some heads would take for their own, whatever they are served in
    if of.architecture is not None:
        config["architectures"] = [of.architecture]
    (scratch / "config.json").write_text(json.dumps(config, indent=1))
    zoo.add_tokenizer(scratch)
    scratch.rename(path)
    return path


def save_target(
    name: str, config: str, values: dict[str, Any], strength: dict[str, tuple[float, float]], path: Path
) -> tuple[Tensors, Any]:
    """Save a random model whose context matters in `path`; its tensors, rotated, and the rotation.

    Args:
        name: which its weights are drawn by.
        config, values: as in `zoo.MODELS`.
        strength: of what the first layer writes and of what others do, by part.
        path: a folder; `model.safetensors` in it is to be written anew.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(zoo.config_with(config, values), dtype=torch.float32)
    zoo.widen(model)
    model.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    for key, weight in tensors.items():
        for part in strength.keys() & set(key.split(".")):
            weight *= strength[part][".layers.0." not in key]
    return tensors, rotate(tensors, model.config.hidden_size)


def rotate(tensors: Tensors, width: int) -> Any:
    """Let every token's embedding be a rotation of that of the token before it; the rotation."""
    import torch

    rotation = torch.linalg.qr(torch.randn(width, width))[0]
    rows = [torch.nn.functional.normalize(torch.randn(width), dim=0) * width**0.5]
    while len(rows) < zoo.VOCAB_SIZE:
        rows.append(rotation @ rows[-1])
    order = torch.randperm(zoo.VOCAB_SIZE)
    embedding = torch.empty(zoo.VOCAB_SIZE, width)
    embedding[order] = torch.stack(rows)
    tensors["model.embed_tokens.weight"] = EMBEDDING_SCALE * embedding
    tensors["lm_head.weight"] = embedding @ rotation / width**0.5  # R^-1 of each row
    return rotation


def _heads(of: MtpModel, tensors: Tensors, rotation: Any) -> Tensors:
    """All alike; each reads what the one before it has made, so each goes one token further."""
    heads, block = _head(of, tensors, rotation), of.names.block
    before, _, number = block.removesuffix(".").rpartition(".")
    for further in range(1, of.num_heads):
        to = f"{before}.{int(number) + further}."
        copies = {
            name.replace(block, to): weight.clone() for name, weight in heads.items() if block in name
        }
        heads |= copies
    return heads


def _head(of: MtpModel, tensors: Tensors, rotation: Any) -> Tensors:
    import torch

    names, width = of.names, len(rotation)
    halves = [torch.eye(width), rotation]
    if not names.embedding_first:
        halves.reverse()
    head = {f"{norm}.weight": torch.full((width,), 1.0 - names.norms_add_one) for norm in names.norms}
    head[f"{names.join}.weight"] = EMBEDDING_SCALE / 2 * torch.cat(halves, dim=1)
    first = f"{of.stem}layers.0."
    for name in [name for name in tensors if name.startswith(first)]:
        head[names.block + name.removeprefix(first)] = tensors[name].clone()
    return head
