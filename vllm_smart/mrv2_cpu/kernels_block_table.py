"""CPU versions of the kernels in vLLM's `block_table` and `buffer_utils` modules.

Block tables arrive as raw addresses, one per KV cache group.
"""

import numpy as np

from vllm_smart.kernels.cpu.launch import array_at, compiled_kernel


def _apply_write_kernel(
    output,  # [num_rows, ...], or [num_groups] addresses if MULTI_GROUP
    output_stride,  # row stride, or [num_groups] row strides if MULTI_GROUP
    write_indices,  # [num_writes]
    write_starts,  # [num_writes]
    write_contents,  # [sum of write lengths]
    write_cu_lens,  # [num_writes], cumulative, without a leading 0
    write_group_ids,  # [num_writes] or None
    BLOCK_SIZE,
    MULTI_GROUP,
):
    """Apply staged writes: each fills part of one row."""
    writes = (write_indices, write_starts, write_contents, write_cu_lens)
    if MULTI_GROUP:
        _write_to_groups(output, output_stride, *writes, write_group_ids)
    else:
        _write_to_rows(output.view(-1), output_stride, *writes)


@compiled_kernel
def _write_to_rows(output, stride, indices, starts, contents, cu_lens):
    begin = 0
    for i in range(len(cu_lens)):
        first = np.int64(indices[i]) * stride + starts[i]
        for at in range(begin, cu_lens[i]):
            output[first + at - begin] = contents[at]
        begin = cu_lens[i]


@compiled_kernel
def _write_to_groups(addresses, strides, indices, starts, contents, cu_lens, group_ids):
    begin = 0
    for i in range(len(cu_lens)):
        group, length = group_ids[i], cu_lens[i] - begin
        first = np.int64(indices[i]) * strides[group] + starts[i]
        output = array_at(addresses[group], (first + length,), np.int32)
        output[first:] = contents[begin : cu_lens[i]]
        begin = cu_lens[i]


@compiled_kernel
def _gather_block_tables_kernel(
    batch_idx_to_req_idx,  # [num_reqs]
    src_block_table_ptrs,  # [num_groups]
    dst_block_table_ptrs,  # [num_groups]
    block_table_strides,  # [num_groups]
    num_blocks,  # [num_groups, max_num_reqs]
    num_blocks_stride,
    num_reqs,
    BLOCK_SIZE,
):
    """Copy the batch's block table rows into batch order.

    Rows past `num_reqs` are left alone: only graph capture pads batches, and not on CPU.
    """
    for group in range(len(src_block_table_ptrs)):
        shape = (num_blocks.shape[1], block_table_strides[group])
        source = array_at(src_block_table_ptrs[group], shape, np.int32)
        target = array_at(dst_block_table_ptrs[group], shape, np.int32)
        for row in range(len(batch_idx_to_req_idx)):
            req = batch_idx_to_req_idx[row]
            for block in range(num_blocks[group, req]):
                target[row, block] = source[req, block]


@compiled_kernel
def _compute_slot_mappings_kernel(
    max_num_tokens,
    idx_mapping,  # [num_reqs], negative: a dummy request that owns no blocks
    query_start_loc,  # [num_reqs + 1]
    pos,  # [num_tokens]
    block_table_ptrs,  # [num_groups]
    block_table_strides,  # [num_groups]
    block_sizes,  # [num_groups]
    slot_mapping_enabled,  # [num_groups]
    dcp_sharded,  # [num_groups]
    slot_mappings,  # [num_groups, max_num_tokens]
    slot_mappings_stride,
    cp_rank,
    CP_SIZE,
    CP_INTERLEAVE,
    PAD_ID,
    TRITON_BLOCK_SIZE,
):
    """Turn positions into KV cache slots; everything unused becomes PAD_ID."""
    if CP_SIZE != 1:
        raise NotImplementedError("context parallelism is not supported on CPU")
    for group in range(len(block_table_ptrs)):
        block_size = np.int64(block_sizes[group])
        slots = slot_mappings[group]
        for row in range(len(idx_mapping)):
            req = idx_mapping[row]
            is_mapped = slot_mapping_enabled[group] and req >= 0
            shape = (max(req, 0) + 1, block_table_strides[group])
            table = array_at(block_table_ptrs[group], shape, np.int32)
            for token in range(query_start_loc[row], query_start_loc[row + 1]):
                if is_mapped:
                    block = np.int64(table[req, pos[token] // block_size])
                    slots[token] = block * block_size + pos[token] % block_size
                else:
                    slots[token] = PAD_ID
        slots[query_start_loc[len(idx_mapping)] :] = PAD_ID
