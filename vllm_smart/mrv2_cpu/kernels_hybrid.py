"""CPU versions of the kernels that models with recurrent layers need of Model Runner V2."""

import numpy as np

from vllm_smart.kernels.cpu.launch import array_at, compiled_kernel


@compiled_kernel
def _zero_kv_blocks_kernel(
    seg_addrs,  # [num_segments] addresses of what each layer keeps for a block
    seg_block_strides,  # [num_segments], in int32
    seg_page_sizes,  # [num_segments], in int32
    block_ids,  # [num_blocks]
    BLOCK_SIZE,
):
    """Clear blocks that have been handed out: another request's numbers may be left in them."""
    for segment in range(len(seg_addrs)):
        size = seg_page_sizes[segment]
        for block in block_ids:
            first = np.int64(seg_addrs[segment]) + 4 * block * seg_block_strides[segment]
            array_at(first, (size,), np.int32)[:] = 0


@compiled_kernel
def _scatter_num_accepted_kernel(
    idx_mapping,  # [num_reqs], negative: a dummy request
    num_sampled,  # [num_reqs]
    num_accepted,  # [max_num_reqs]
):
    """Note which of the states that a step has left is the request's: one for each of its tokens."""
    for row in range(len(idx_mapping)):
        if idx_mapping[row] >= 0:
            num_accepted[idx_mapping[row]] = max(num_sampled[row], 1)


@compiled_kernel
def _fill_num_accepted_kernel(
    idx_mapping,  # [num_reqs], negative: a dummy request
    num_accepted,  # [max_num_reqs]
    num_sampled,
):
    """The same, where all requests have sampled equally many."""
    for row in range(len(idx_mapping)):
        if idx_mapping[row] >= 0:
            num_accepted[idx_mapping[row]] = num_sampled
