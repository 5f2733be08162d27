"""EAGLE-1 and EAGLE-3 heads in plain torch, unrolled over a chain for all positions at once.

At position s a head sees the target's hidden state of token s and the embedding of token s + 1,
and guesses token s + 2. Further steps feed it its own output in place of the hidden state.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.model import (
    MLP,
    Attention,
    Llama,
    LlamaShape,
    RMSNorm,
    initialise,
    rope_table,
    save_checkpoint,
)

# Residual streams of the four-layer target that EAGLE-3 reads: an early, a middle, the last one.
AUX_LAYER_IDS = (1, 3, 4)


def unrolled_attention(
    attention: Attention,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    past: list[tuple[Tensor, Tensor]],
) -> Tensor:
    """Attention of chain step `len(past) + 1`, every chain of the sequence in parallel.

    The chain rooted at s attends to the first step's keys up to s, which were computed from the
    target's hidden states, and to its own later steps, one key each. Source: the training-time
    test of EAGLE-3, arXiv 2503.01840.

    Args:
        x: [batch, num_roots, width], row s belongs to the chain rooted at s.
        cos: [num_roots, head_dim], shifted so that row s is for position s + len(past).
        sin: like `cos`.
        past: keys and values of the earlier steps, [batch, heads, num_roots, head_dim] each;
            this step's are appended.
    """
    q, k, v = attention.project(x, cos, sin)
    past.append((attention.spread(k), attention.spread(v)))
    (first_k, first_v), later = past[0], past[1:]
    scale = q.shape[-1] ** -0.5
    roots = q.shape[2]
    future = torch.ones(roots, roots, dtype=torch.bool).triu(1)
    scores = (q @ first_k.transpose(-1, -2)).float().masked_fill(future, float("-inf"))
    own = [(q * key).sum(-1, keepdim=True).float() for key, _ in later]
    weights = (torch.cat([scores, *own], dim=-1) * scale).softmax(-1).to(v.dtype)
    mixed = weights[..., :roots] @ first_v
    for step, (_, value) in enumerate(later):
        mixed = mixed + weights[..., roots + step, None] * value
    return attention.merge(mixed)


class EagleHead(nn.Module):
    """What both heads share: the frozen target's embedding, and the unrolled chain.

    Subclasses give `first_hidden` (from the target's states), `step` and `head_logits`.
    """

    def __init__(self, target: Llama) -> None:
        super().__init__()
        self.shape = target.shape
        # In a tuple, so that the target is neither trained nor saved with the head.
        self._target = (target,)
        cos, sin = rope_table(target.shape, target.shape.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @property
    def target(self) -> Llama:
        return self._target[0]

    def first_hidden(self, normed: Tensor, streams: list[Tensor]) -> Tensor:
        raise NotImplementedError

    def step(
        self, embeds: Tensor, hidden: Tensor, rope: tuple[Tensor, Tensor], past: list
    ) -> tuple[Tensor, Tensor]:
        """Returns (the state that gives logits, the state fed to the next step)."""
        raise NotImplementedError

    def head_logits(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def unroll(
        self, ids: Tensor, normed: Tensor, streams: list[Tensor], num_steps: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (logits, next hidden) of steps 1..num_steps, drafts taken from `ids`.

        Row s of step k guesses ids[:, s + k + 1]. A chain only goes on where its drafts were
        right, so the true tokens stand for the drafted ones. Rows that would look past the end
        are left out: step k yields `length - k` rows.

        Args:
            ids: [batch, length].
            normed: the target's normed hidden states, [batch, length, hidden].
            streams: the target's residual streams, each like `normed`.
        """
        hidden = self.first_hidden(normed, streams)
        embeds = self.target.embed_tokens(ids).to(hidden.dtype)
        past: list[tuple[Tensor, Tensor]] = []
        for k in range(1, num_steps + 1):
            roots = ids.shape[1] - k
            hidden = hidden[:, :roots]
            past[:] = [(key[:, :, :roots], value[:, :, :roots]) for key, value in past]
            rope = (self.cos[k - 1 : k - 1 + roots], self.sin[k - 1 : k - 1 + roots])
            out, hidden = self.step(embeds[:, k:], hidden, rope, past)
            yield self.head_logits(out), hidden


class Eagle1Head(EagleHead):
    """`fc` on embedding and hidden state, then one layer without its input norm."""

    def __init__(self, target: Llama) -> None:
        super().__init__(target)
        shape = target.shape
        self.fc = nn.Linear(2 * shape.hidden_size, shape.hidden_size, bias=False)
        self.layers = nn.ModuleList([nn.Module()])
        layer = self.layers[0]
        layer.self_attn = Attention(shape)
        layer.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        layer.mlp = MLP(shape)
        initialise(self)
        with torch.no_grad():  # start as "the hidden state does not change"
            self.fc.weight[:, shape.hidden_size :] += torch.eye(shape.hidden_size)

    def first_hidden(self, normed: Tensor, streams: list[Tensor]) -> Tensor:
        return normed

    def step(self, embeds, hidden, rope, past):
        layer = self.layers[0]
        x = self.fc(torch.cat([embeds, hidden], dim=-1))
        x = x + unrolled_attention(layer.self_attn, x, *rope, past)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        return x, x

    def head_logits(self, hidden: Tensor) -> Tensor:
        return self.target.logits(hidden)

    def config(self) -> dict[str, object]:
        return one_layer(self.shape).to_config()


class Eagle3Head(EagleHead):
    """`fc` on three residual streams, a layer over [embedding, hidden], its own norm and head."""

    def __init__(self, target: Llama, aux_layer_ids: tuple[int, ...] = AUX_LAYER_IDS) -> None:
        super().__init__(target)
        self.aux_layer_ids = aux_layer_ids
        shape = target.shape
        size, eps = shape.hidden_size, shape.rms_norm_eps
        self.fc = nn.Linear(len(aux_layer_ids) * size, size, bias=False)
        self.midlayer = nn.Module()
        self.midlayer.input_layernorm = RMSNorm(size, eps)
        self.midlayer.hidden_norm = RMSNorm(size, eps)
        self.midlayer.self_attn = Attention(shape, input_size=2 * size)
        self.midlayer.post_attention_layernorm = RMSNorm(size, eps)
        self.midlayer.mlp = MLP(shape)
        self.norm = RMSNorm(size, eps)
        self.lm_head = nn.Linear(size, shape.vocab_size, bias=False)
        initialise(self)
        with torch.no_grad():  # start from the target's own last stream, norm and head
            self.fc.weight[:, -size:] += torch.eye(size)
            self.norm.weight.copy_(target.norm.weight)
            self.lm_head.weight.copy_(target.embed_tokens.weight)

    def first_hidden(self, normed: Tensor, streams: list[Tensor]) -> Tensor:
        return self.fc(torch.cat([streams[index] for index in self.aux_layer_ids], dim=-1))

    def step(self, embeds, hidden, rope, past):
        layer = self.midlayer
        x = torch.cat([layer.input_layernorm(embeds), layer.hidden_norm(hidden)], dim=-1)
        hidden = hidden + unrolled_attention(layer.self_attn, x, *rope, past)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.norm(hidden), hidden

    def head_logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def config(self) -> dict[str, object]:
        return one_layer(self.shape).to_config(
            tie_word_embeddings=False,
            draft_vocab_size=self.shape.vocab_size,
            eagle_aux_hidden_state_layer_ids=list(self.aux_layer_ids),
        )


def one_layer(shape: LlamaShape) -> LlamaShape:
    return LlamaShape(**{**vars(shape), "num_hidden_layers": 1})


def save_head(head: Eagle1Head | Eagle3Head, folder: Path) -> None:
    """Writes the head as vLLM loads it: a one-layer Llama config and bfloat16 tensors."""
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in head.state_dict().items()
    }
    save_checkpoint(folder, head.config(), tensors)


def load_head(head: Eagle1Head | Eagle3Head, folder: Path) -> None:
    """Fills `head` from a folder written by `save_head`."""
    tensors = load_file(str(folder / "model.safetensors"))
    head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
