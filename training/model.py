"""A plain torch Llama whose parameter names are those of the Hugging Face format.

Small enough to read in one go; serving code never imports it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaShape:
    """The part of a Llama `config.json` that decides shapes and arithmetic."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True

    def to_config(self, **extra: object) -> dict[str, object]:
        """The `config.json` of a checkpoint of this shape."""
        rope = {"rope_theta": self.rope_theta, "rope_type": "default"}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **vars(self),
            "rope_parameters": rope,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "dtype": "bfloat16",
            **extra,
        }

    @classmethod
    def from_folder(cls, folder: Path) -> LlamaShape:
        config = json.loads((folder / "config.json").read_text())
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


def rope_table(shape: LlamaShape, length: int) -> tuple[Tensor, Tensor]:
    """Returns cos and sin, each [length, head_dim], in the rotate-half layout."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length).float(), shape.rope_theta**-half)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies RoPE. x: [batch, heads, length, head_dim]; cos, sin: [length, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    turned = torch.cat([-right, left], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention. `input_size` differs from the hidden size in EAGLE-3 heads."""

    def __init__(self, shape: LlamaShape, input_size: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        width = input_size or shape.hidden_size
        q_size = shape.num_attention_heads * shape.head_dim
        kv_size = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(width, q_size, bias=False)
        self.k_proj = nn.Linear(width, kv_size, bias=False)
        self.v_proj = nn.Linear(width, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, shape.hidden_size, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns rotated q and k, and v, each [batch, its heads, length, head_dim]."""
        q, k, v = (
            linear(x).unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def spread(self, heads: Tensor) -> Tensor:
        """Repeats each key/value head for the query heads that share it."""
        group = self.shape.num_attention_heads // self.shape.num_key_value_heads
        return heads.repeat_interleave(group, dim=1)

    def merge(self, heads: Tensor) -> Tensor:
        """[batch, heads, length, head_dim] -> [batch, length, hidden]."""
        return self.o_proj(heads.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None) -> Tensor:
        q, k, v = self.project(x, cos, sin)
        is_prefill = not cache
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
            cache[:] = [k, v]
        k, v = self.spread(k), self.spread(v)
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=is_prefill))


class MLP(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Embedding, layers and final norm; the logits reuse the embedding (tied)."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        cos, sin = rope_table(shape, shape.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialise(self)

    def forward(
        self, ids: Tensor, caches: list[list[Tensor]] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs the stack. ids: [batch, length].

        Returns:
            The normed hidden state [batch, length, hidden], and the residual streams: entry i is
            the input of layer i, the last one the output of the last layer before the norm.
        """
        start = caches[0][0].shape[2] if caches and caches[0] else 0
        cos, sin = (table[start : start + ids.shape[1]] for table in (self.cos, self.sin))
        streams = [self.embed_tokens(ids)]
        for index, layer in enumerate(self.layers):
            cache = caches[index] if caches is not None else None
            streams.append(layer(streams[-1], cos, sin, cache))
        return self.norm(streams[-1]), streams

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)

    @torch.no_grad()
    def generate(self, ids: Tensor, num_tokens: int, temperature: float = 0.0) -> Tensor:
        """Returns ids with `num_tokens` columns appended; rows do not stop at end of text."""
        caches: list[list[Tensor]] = [[] for _ in self.layers]
        tokens, inputs = ids, ids
        for _ in range(num_tokens):
            hidden, _ = self(inputs, caches)
            scores = self.logits(hidden[:, -1]).float()
            if temperature:
                inputs = torch.multinomial((scores / temperature).softmax(-1), 1)
            else:
                inputs = scores.argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, inputs], dim=1)
        return tokens


def initialise(module: nn.Module) -> None:
    """Small normal weights; branches that end in the residual stream start at zero."""
    for name, parameter in module.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)


def save_llama(model: Llama, folder: Path) -> None:
    """Writes `config.json` and bfloat16 `model.safetensors` with Hugging Face names."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"model.{name}": tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_checkpoint(folder, model.shape.to_config(), tensors)


def save_checkpoint(folder: Path, config: dict[str, object], tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def load_llama(folder: Path) -> Llama:
    """Reads a folder written by `save_llama` into float32 (the bfloat16 values are kept)."""
    model = Llama(LlamaShape.from_folder(folder))
    tensors = load_file(str(folder / "model.safetensors"))
    state = {name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()}
    model.load_state_dict(state)
    return model
