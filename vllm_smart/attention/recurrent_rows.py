"""Rows of chains, for gated delta rules on CPUs: each by the kernels with which a request decodes.

vLLM's own path for drafts rounds otherwise than its path without them, so that a draft would change the
text. Here all requests' first rows run as a batch that decodes, then their second ones, and so on. Each
leaves a state of its own, and the next step goes on from the one of the last accepted row.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention as stock
from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadata

from vllm_smart.seams.rebound import is_ours, marked


@dataclass
class Part:
    """Rows that run together, as vLLM would run them if nobody drafted.

    Attributes:
        metadata: of these rows.
        rows: [num_rows] int64 where they lie in the batch; None: they are all of it.
        source: [num_reqs] int64 slots of the states that they go on from; None: of their own.
    """

    metadata: GDNAttentionMetadata
    rows: torch.Tensor | None = None
    source: torch.Tensor | None = None


@dataclass
class ChainMetadata(GDNAttentionMetadata):
    """vLLM's metadata of a step, and what runs one after the other."""

    parts: list[Part] = field(default_factory=list)


def with_chains(metadata: GDNAttentionMetadata) -> ChainMetadata:
    """`metadata` of a step of an engine with chains, whose requests may have drafts."""
    of_vllm = {of.name: getattr(metadata, of.name) for of in fields(GDNAttentionMetadata)}
    return ChainMetadata(**of_vllm, parts=list(_parts(metadata)))


def use_chain_rows() -> None:
    """Let layers run steps of engines with chains by `Part`s; those of others stay. Idempotent."""
    spec_aware = stock._cpu_gdn_attention_spec_aware
    if is_ours(spec_aware):
        return

    @functools.wraps(spec_aware)
    def _cpu_gdn_attention_spec_aware(
        layer: Any, attn_metadata_i: GDNAttentionMetadata, *args: Any
    ) -> None:
        if not isinstance(attn_metadata_i, ChainMetadata):
            spec_aware(layer, attn_metadata_i, *args)
            return
        mixed_qkv, b, a, core_attn_out = args[:4]
        states = NarrowStates(layer)
        for part in attn_metadata_i.parts:
            states.run(part, mixed_qkv, b, a, core_attn_out)

    stock._cpu_gdn_attention_spec_aware = marked(_cpu_gdn_attention_spec_aware)


class NarrowStates:
    """A layer whose states are as wide as without speculation."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        conv, recurrent = layer.kv_cache
        width = layer.conv1d.weight.size(-1) - 1
        conv = conv[:, :, :width] if is_conv_state_dim_first() else conv[:, :width]
        self.kv_cache = conv, recurrent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def run(
        self,
        part: Part,
        mixed_qkv: torch.Tensor,
        b: torch.Tensor,
        a: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Write the outputs of a part's rows into `out`; all are of the whole batch."""
        metadata = part.metadata
        if part.source is not None:
            target = metadata.non_spec_state_indices_tensor
            for state in self.kv_cache:
                state[target] = state[part.source]
        if part.rows is None:
            stock._cpu_gdn_attention_nonspec(self, metadata, mixed_qkv, b, a, out)
            return
        of_rows = torch.zeros_like(out[: len(part.rows)])
        stock._cpu_gdn_attention_nonspec(
            self, metadata, mixed_qkv[part.rows], b[part.rows], a[part.rows], of_rows
        )
        out[part.rows] = of_rows


def _parts(metadata: GDNAttentionMetadata) -> Iterator[Part]:
    """Rows of requests that decode, by depth, then those of prompts."""
    if metadata.spec_sequence_masks is None:
        slots = metadata.non_spec_state_indices_tensor
        assert slots is not None
        yield Part(replace(metadata, non_spec_state_indices_tensor=slots.contiguous()))
        return
    slots, accepted = metadata.spec_state_indices_tensor, metadata.num_accepted_tokens
    ends, rows = metadata.spec_query_start_loc, metadata.spec_token_indx
    assert slots is not None
    assert accepted is not None
    assert ends is not None
    assert rows is not None
    for at, source, target in chain_depths(slots, accepted, ends):
        stays = torch.equal(source, target)
        yield Part(_decodes(target), rows.long()[at], None if stays else source)
    if metadata.num_prefills:
        yield from _prompts(metadata)


def chain_depths(
    slots: torch.Tensor, accepted: torch.Tensor, ends: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The rows of a step by their place in their chain, the roots first.

    Args:
        slots: [num_reqs, most rows] of states, one for each row.
        accepted: [num_reqs] rows of the step before that stand; the next one goes on from the last.
        ends: [num_reqs + 1] first row of each request, then num_rows.

    Yields:
        [n] int64 each: rows, slots of the states that they go on from, and of their own.
    """
    slots, num_rows = slots.long(), ends.diff()
    for depth in range(int(num_rows.max())):
        req = torch.nonzero(num_rows > depth).flatten()
        source = slots[req, accepted[req].long() - 1 if depth == 0 else depth - 1]
        yield ends[req].long() + depth, source, slots[req, depth]


def _prompts(metadata: GDNAttentionMetadata) -> Iterator[Part]:
    """Without drafts beside it, a prompt's single token goes on from a state as if it decoded."""
    slots, ends = metadata.non_spec_state_indices_tensor, metadata.non_spec_query_start_loc
    rows, continues = metadata.non_spec_token_indx, metadata.has_initial_state
    assert slots is not None
    assert ends is not None
    assert rows is not None
    assert continues is not None
    rows, num_rows = rows.long(), ends.diff()
    decodes = continues & (num_rows == 1)
    if decodes.any():
        yield Part(_decodes(slots[decodes]), rows[ends[:-1][decodes].long()])
    prefills = ~decodes & (num_rows > 0)
    if prefills.any():
        lengths = num_rows[prefills]
        is_prefill = torch.repeat_interleave(prefills, num_rows)
        start = torch.cat((ends.new_zeros(1), lengths.cumsum(0).to(ends.dtype)))
        total = int(lengths.sum())
        of_prefills = GDNAttentionMetadata(
            num_prefills=len(lengths),
            num_prefill_tokens=total,
            num_decodes=0,
            num_decode_tokens=0,
            num_spec_decodes=0,
            num_spec_decode_tokens=0,
            num_actual_tokens=total,
            has_initial_state=continues[prefills],
            non_spec_query_start_loc=start,
            non_spec_state_indices_tensor=slots[prefills],
        )
        yield Part(of_prefills, rows[is_prefill])


def _decodes(slots: torch.Tensor) -> GDNAttentionMetadata:
    """Of a batch of one row for each of the states in `slots`."""
    num = len(slots)
    return GDNAttentionMetadata(
        num_prefills=0,
        num_prefill_tokens=0,
        num_decodes=num,
        num_decode_tokens=num,
        num_spec_decodes=0,
        num_spec_decode_tokens=0,
        num_actual_tokens=num,
        non_spec_query_start_loc=torch.arange(num + 1, dtype=torch.int32),
        non_spec_state_indices_tensor=slots.to(torch.int32),
    )
