"""Rows of chains, for vLLM's own attention: each as a request of one row, as when it decodes alone.

A row of a chain sees the tokens before it, which is what a request of one row sees that has as many
tokens. So windows, sinks, chunks, biases and quantised caches are as they are without drafts, and so
are the last bits: vLLM's kernel rounds several rows of one request otherwise than a single one.
"""

from dataclasses import replace

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch


def each_row_alone(
    batch: InputBatch, block_tables: tuple[torch.Tensor, ...]
) -> tuple[InputBatch, tuple[torch.Tensor, ...]]:
    """A batch with drafts as attention is to see it: the same rows in the same order.

    Args:
        batch: its first requests have drafts.
        block_tables: [>= num_reqs, max_num_blocks] of each KV cache group.

    Returns:
        The batch, fit for attention's metadata alone, and the block tables of its requests.
    """
    num_drafts = batch.num_draft_tokens_per_req
    assert num_drafts is not None
    num_rows = np.where(num_drafts > 0, batch.num_scheduled_tokens, 1)
    req = np.repeat(np.arange(batch.num_reqs), num_rows)  # of each row that is alone, or of the rest
    first = np.cumsum(num_rows) - num_rows
    rows_after = (num_rows[req] - 1) - (np.arange(len(req)) - first[req])
    num_scheduled = np.where(num_drafts[req] > 0, 1, batch.num_scheduled_tokens[req])
    query_start = np.concatenate(([0], np.cumsum(num_scheduled))).astype(np.int32)
    of_row, fewer = torch.from_numpy(req), torch.from_numpy(rows_after.astype(np.int32))
    alone = replace(
        batch,
        num_reqs=len(req),
        num_scheduled_tokens=num_scheduled,
        query_start_loc_np=query_start,
        query_start_loc=torch.from_numpy(query_start),
        seq_lens=batch.seq_lens[of_row] - fewer,
        seq_lens_cpu_upper_bound=batch.seq_lens_cpu_upper_bound[of_row] - fewer,
        is_prefilling_np=batch.is_prefilling_np[req],
        idx_mapping_np=batch.idx_mapping_np[req],
    )
    return alone, tuple(table[of_row] for table in block_tables)
