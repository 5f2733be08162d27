"""CPU versions of the kernels in vLLM's `block_table` and `buffer_utils` modules.

Block tables arrive as raw addresses, one per KV cache group.
"""

import numpy as np

from vllm_smart.adapter.cpu.launch import compiled, int32_at, on_numpy


@on_numpy
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
    if not MULTI_GROUP:
        output = output.reshape(-1)
    begin = 0
    for i, end in enumerate(write_cu_lens.tolist()):
        length = end - begin
        row, start = int(write_indices[i]), int(write_starts[i])
        if MULTI_GROUP:
            group = write_group_ids[i]
            first = row * int(output_stride[group]) + start
            row_end = int32_at(int(output[group]), first + length)
        else:
            first = row * output_stride + start
            row_end = output
        row_end[first : first + length] = write_contents[begin:end]
        begin = end


@on_numpy
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
    groups = zip(
        src_block_table_ptrs.tolist(),
        dst_block_table_ptrs.tolist(),
        block_table_strides.tolist(),
        num_blocks,
        strict=True,
    )
    for source, target, stride, blocks in groups:
        shape = (len(blocks), stride)
        _copy_rows(batch_idx_to_req_idx, blocks, int32_at(source, *shape), int32_at(target, *shape))


@compiled
def _copy_rows(idx_mapping, num_blocks, source, target):
    for row in range(len(idx_mapping)):
        req = idx_mapping[row]
        for block in range(num_blocks[req]):
            target[row, block] = source[req, block]


@on_numpy
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
    num_rows = int(idx_mapping.max(initial=0)) + 1
    groups = zip(
        block_table_ptrs.tolist(),
        block_table_strides.tolist(),
        block_sizes.tolist(),
        slot_mapping_enabled.tolist(),
        slot_mappings,
        strict=True,
    )
    for address, stride, block_size, is_enabled, slots in groups:
        table = int32_at(address, num_rows, stride)
        _map_slots(idx_mapping, query_start_loc, pos, table, block_size, is_enabled, slots, PAD_ID)


@compiled
def _map_slots(idx_mapping, query_start_loc, pos, table, block_size, is_enabled, slots, pad_id):
    for row in range(len(idx_mapping)):
        req = idx_mapping[row]
        for token in range(query_start_loc[row], query_start_loc[row + 1]):
            if is_enabled and req >= 0:
                block = np.int64(table[req, pos[token] // block_size])
                slots[token] = block * block_size + pos[token] % block_size
            else:
                slots[token] = pad_id
    slots[query_start_loc[len(idx_mapping)] :] = pad_id
