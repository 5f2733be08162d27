"""Rows of chains, for Mamba2 layers on CPUs: each by the kernels with which a request decodes.

As in `recurrent_rows`: all requests' first rows run as a batch that decodes, then their second ones.
Each leaves a state of its own, and the next step goes on from that of the last accepted row. vLLM's own
path for drafts goes on from another state, and reads the weights of its convolution past their end.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.v1.attention.backends.mamba2_attn import Mamba2AttentionMetadata

from vllm_smart.attention.recurrent_rows import NarrowStates, chain_depths
from vllm_smart.seams.rebound import is_ours, marked


@dataclass
class MambaPart:
    """Rows that run together, as vLLM would run them if nobody drafted.

    Attributes:
        metadata: of these rows.
        rows: [num_rows] int64 where they lie in the batch.
        source, target: [num_rows] int64 slots of the states that they go on from, and of their own;
            None: those of `metadata`.
    """

    metadata: Mamba2AttentionMetadata
    rows: torch.Tensor
    source: torch.Tensor | None = None
    target: torch.Tensor | None = None


@dataclass
class ChainMamba2Metadata(Mamba2AttentionMetadata):
    """vLLM's metadata of a step, and what runs one after the other."""

    parts: list[MambaPart] = field(default_factory=list)


def with_mamba_chains(metadata: Mamba2AttentionMetadata) -> ChainMamba2Metadata:
    """`metadata` of a step of an engine with chains, whose requests may have drafts."""
    of_vllm = {of.name: getattr(metadata, of.name) for of in fields(Mamba2AttentionMetadata)}
    return ChainMamba2Metadata(**of_vllm, parts=list(_parts(metadata)))


def use_mamba_chain_rows() -> None:
    """Let layers run steps of engines with chains by `MambaPart`s; those of others stay. Idempotent."""
    stock = MambaMixer2.conv_ssm_forward
    if is_ours(stock):
        return

    @functools.wraps(stock)
    def conv_ssm_forward(
        self: MambaMixer2, projected_states: torch.Tensor, output: torch.Tensor
    ) -> Any:
        context = get_forward_context()
        by_layer = context.attn_metadata
        metadata = by_layer.get(self.prefix) if isinstance(by_layer, dict) else None
        if not isinstance(metadata, ChainMamba2Metadata):
            return stock(self, projected_states, output)
        narrow = NarrowStates(self)
        try:
            for part in metadata.parts:
                states: Any = narrow if part.source is None else _FewStates(narrow, part.source)
                context.attn_metadata = {self.prefix: part.metadata}
                of_rows = torch.zeros_like(output[: len(part.rows)])
                stock(states, projected_states[part.rows], of_rows)
                output[part.rows] = of_rows
                if part.target is not None:
                    states.keep(part.target)
        finally:
            context.attn_metadata = by_layer
        return None

    MambaMixer2.conv_ssm_forward = marked(conv_ssm_forward)


class _FewStates:
    """A layer with copies of some states alone, one for each row, in slots from 1 on.

    vLLM's convolution copies the whole cache that it is given, and 0 is the slot of nobody.
    """

    def __init__(self, layer: NarrowStates, source: torch.Tensor) -> None:
        self._layer = layer
        padded = torch.cat((source[:1], source))
        self.kv_cache = tuple(state[padded] for state in layer.kv_cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def keep(self, target: torch.Tensor) -> None:
        """Put the states into the layer's slots `target`."""
        for state, of_rows in zip(self._layer.kv_cache, self.kv_cache, strict=True):
            state[target] = of_rows[1:]


def _parts(metadata: Mamba2AttentionMetadata) -> Iterator[MambaPart]:
    """Rows of requests that decode, by depth, then those of prompts."""
    if metadata.num_decodes:
        slots, ends = metadata.state_indices_tensor_d, metadata.query_start_loc_d
        accepted = metadata.num_accepted_tokens
        assert slots is not None
        assert ends is not None
        assert accepted is not None
        for rows, source, target in chain_depths(slots, accepted, ends):
            yield MambaPart(_decodes(metadata, len(rows)), rows, source, target)
    if metadata.num_prefills:
        first = metadata.num_decode_tokens
        of_prompts = replace(
            metadata,
            num_decodes=0,
            num_decode_tokens=0,
            state_indices_tensor_d=None,
            query_start_loc_d=None,
            num_accepted_tokens=None,
        )
        yield MambaPart(of_prompts, torch.arange(first, first + metadata.num_prefill_tokens))


def _decodes(metadata: Mamba2AttentionMetadata, num_rows: int) -> Mamba2AttentionMetadata:
    """Of a batch of one row for each of the states from slot 1 on."""
    return Mamba2AttentionMetadata(
        num_prefills=0,
        num_prefill_tokens=0,
        num_decodes=num_rows,
        num_decode_tokens=num_rows,
        num_reqs=num_rows,
        has_initial_states_p=None,
        query_start_loc_p=None,
        state_indices_tensor_p=None,
        state_indices_tensor_d=torch.arange(1, num_rows + 1, dtype=torch.int32).unsqueeze(1),
        query_start_loc_d=None,
        num_accepted_tokens=None,
        seq_lens=metadata.seq_lens[:num_rows],
        chunk_size=metadata.chunk_size,
    )
