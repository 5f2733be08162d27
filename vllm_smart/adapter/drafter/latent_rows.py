"""What a drafter with latent attention reads after a context, each row as a request of its own.

vLLM's kernel for rows that decode reads latents as they are cached. For several rows of a request it
computes the keys and values of all of its context anew, head by head.
"""

from typing import Any

import numpy as np
import torch
from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata

from vllm_smart.adapter.drafter.speculator import TreeSpeculator


def reads_latents(host: TreeSpeculator) -> bool:
    """Whether the drafter's attention is of the kind that this is about."""
    return any(group.backend is CPUMLABackend for groups in host.attn_groups for group in groups)


def latent_metadata(
    host: TreeSpeculator, row_start: np.ndarray, seq_lens: np.ndarray, slot_mappings: torch.Tensor
) -> dict[str, Any]:
    """Attention metadata of a pass over rows of the requests whose block tables come first.

    Args:
        row_start: [num_reqs + 1] first row of each request, then num_rows.
        seq_lens: [num_reqs] tokens that the last row of each sees, itself included.
        slot_mappings: [num_groups, num_rows].
    """
    req, start, lengths = each_row_after_context(row_start, seq_lens)
    row_starts, seen = torch.from_numpy(start), torch.from_numpy(lengths)
    metadata: dict[str, Any] = build_attn_metadata(
        attn_groups=host.attn_groups,
        num_reqs=len(req),
        num_tokens=int(start[-1]),
        query_start_loc_gpu=row_starts,
        query_start_loc_cpu=row_starts,
        max_query_len=int(np.diff(start).max()),
        seq_lens=seen,
        max_seq_len=int(lengths.max()),
        block_tables=[table[torch.from_numpy(req)] for table in host.block_tables.input_block_tables],
        slot_mappings=slot_mappings,
        kv_cache_config=host.kv_cache_config,
        seq_lens_cpu_upper_bound=seen,
    )
    return metadata


def each_row_after_context(
    row_start: np.ndarray, seq_lens: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Requests cut into rows, but for those that have all that they see among their rows.

    Args:
        row_start, seq_lens: as for `latent_metadata`.

    Returns:
        Request of each part [num_parts], first row of each, then num_rows, [num_parts + 1] int32, and
        tokens that the last row of each sees [num_parts] int32.
    """
    num_rows = np.diff(row_start)
    has_context = seq_lens > num_rows
    parts = np.where(has_context, num_rows, 1)
    req = np.repeat(np.arange(len(num_rows)), parts)
    size = np.where(has_context[req], 1, num_rows[req])
    start = np.concatenate(([0], np.cumsum(size))).astype(np.int32)
    rows_after = np.asarray(row_start)[req + 1] - start[1:]
    return req, start, (seq_lens[req] - rows_after).astype(np.int32)
