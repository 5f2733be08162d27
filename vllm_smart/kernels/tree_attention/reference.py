"""Tree attention in plain torch float32, over a cache in vLLM's layout for CPUs; for tests."""

from collections.abc import Iterator

import numpy as np
import torch

from vllm_smart.kernels.tree_attention import (
    PLAIN,
    LayerRules,
    TreeAttentionBatch,
    unpack_kv,
    unpack_mask,
)


def tree_attention(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    output: torch.Tensor,
    batch: TreeAttentionBatch,
    scale: float,
    rules: LayerRules = PLAIN,
) -> None:
    """Attend the rows of `batch.requests`; write their rows of `output` and no others.

    Args:
        query: [num_rows, num_heads, head_size].
        kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size].
        output: [num_rows, num_heads, head_size], written in place.
        batch: Which rows see which tokens.
        scale: Factor on the scores.
        rules: What the layer makes of them.
    """
    group = query.shape[1] // kv_cache.shape[1]
    for rows, keys, values, visible in _requests(kv_cache, batch):
        scores = torch.einsum("nhd,thd->hnt", query[rows].float(), keys.repeat_interleave(group, 1))
        scores *= scale
        if rules.softcap > 0:
            scores = rules.softcap * torch.tanh(scores / rules.softcap)
        position = visible.cumsum(-1) - 1  # of each key on the path of a row
        own = position[:, -1:]
        if rules.alibi_slopes is not None:
            scores = scores + rules.alibi_slopes[:, None, None] * (position - own)
        first_seen = rules.first_seen(own.numpy())
        if first_seen is not None:
            visible = visible & (position >= torch.from_numpy(first_seen))
        scores = scores.masked_fill(~visible, float("-inf"))
        if rules.sinks is not None:
            sinks = rules.sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
            scores = torch.cat([scores, sinks], dim=-1)
        probs = scores.softmax(-1)[..., : visible.shape[1]]
        result = torch.einsum("hnt,thd->nhd", probs, values.repeat_interleave(group, 1))
        output[rows] = result.to(output.dtype)


def _requests(
    kv_cache: torch.Tensor, batch: TreeAttentionBatch
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Per request: its rows, keys and values [seq_len, num_kv_heads, head_size], visibility."""
    all_keys, all_values = unpack_kv(kv_cache)
    block_size = kv_cache.shape[2]
    for request in batch.requests.tolist():
        rows = slice(*batch.query_start_loc[request : request + 2].tolist())
        seq_len = int(batch.seq_lens[request])
        blocks = torch.from_numpy(batch.block_table[request, : -(-seq_len // block_size)]).long()
        keys = all_keys[blocks].transpose(1, 2).flatten(0, 1)[:seq_len]
        values = all_values[blocks].transpose(1, 2).flatten(0, 1)[:seq_len]
        tail_len = int(batch.tail_lens[request])
        visible = np.ones((rows.stop - rows.start, seq_len), dtype=bool)
        visible[:, seq_len - tail_len :] = unpack_mask(batch.ancestor_mask[rows])[:, :tail_len]
        yield rows, keys.float(), values.float(), torch.from_numpy(visible)
