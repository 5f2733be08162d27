"""CPU version of the kernel that prepares the blocks of `vllm.v1.worker.gpu.spec_decode.dflash`."""

from vllm_smart.kernels.cpu.launch import compiled_kernel


@compiled_kernel
def _prepare_dflash_inputs_kernel(
    out_input_ids,  # [max_num_tokens]
    out_query_positions,  # [max_num_tokens]
    out_query_start_loc,  # [max_num_reqs + 1]
    out_seq_lens,  # [max_num_reqs]
    out_query_slot_mapping,  # [max_num_tokens]
    out_context_positions,  # [max_num_tokens]
    out_context_slot_mapping,  # [max_num_tokens]
    out_sample_indices,  # [max_num_reqs * num_speculative_steps]
    out_sample_pos,  # the same
    out_sample_idx_mapping,  # the same
    out_temperature,  # [max_num_reqs]
    out_seeds,  # [max_num_reqs]
    target_positions,  # [num_tokens]
    target_query_start_loc,  # [num_reqs + 1]
    idx_mapping,  # [num_reqs]
    last_sampled,  # [max_num_reqs, 1]
    next_prefill_tokens,  # [num_lookahead, max_num_reqs]
    num_sampled,  # [num_reqs]
    num_rejected,  # [num_reqs]
    temperature,  # [max_num_reqs]
    seeds,  # [max_num_reqs]
    block_table,  # [>= num_reqs, max_num_blocks]
    block_table_stride,
    parallel_drafting_token_id,
    block_size,
    num_query_per_req,
    num_speculative_steps,
    max_num_reqs,
    max_num_tokens,
    max_model_len,
    cp_rank,
    SAMPLE_FROM_ANCHOR,
    PAD_SLOT_ID,
    CP_SIZE,
    CP_INTERLEAVE,
    BLOCK_SIZE,
):
    """Slots of what is known; then, for each request, its newest token and masks after it."""
    num_reqs = len(idx_mapping)
    first_sampled = 0 if SAMPLE_FROM_ANCHOR else 1
    for row in range(num_reqs):
        req = idx_mapping[row]
        start, end = target_query_start_loc[row], target_query_start_loc[row + 1]
        valid_end = end - num_rejected[row]
        for token in range(start, end):
            position, slot = 0, PAD_SLOT_ID
            if token < valid_end:
                position = target_positions[token]
                block = block_table[row, min(position // block_size, block_table_stride - 1)]
                if block != 0:
                    slot = block * block_size + position % block_size
            out_context_positions[token] = position
            out_context_slot_mapping[token] = slot
        root = last_sampled[req, 0] if num_sampled[row] > 0 else next_prefill_tokens[0, req]
        first_position = target_positions[valid_end - 1] + 1
        first = row * num_query_per_req
        for place in range(num_query_per_req):
            position = first_position + place
            block = block_table[row, min(position // block_size, block_table_stride - 1)]
            slot = PAD_SLOT_ID
            if block != 0:
                slot = block * block_size + position % block_size
            out_input_ids[first + place] = root if place == 0 else parallel_drafting_token_id
            out_query_positions[first + place] = min(position, max_model_len - 1)
            out_query_slot_mapping[first + place] = slot
            if place >= first_sampled:
                sample = row * num_speculative_steps + place - first_sampled
                out_sample_indices[sample] = first + place
                out_sample_pos[sample] = position + 1 - first_sampled
                out_sample_idx_mapping[sample] = req
        out_query_start_loc[row] = first
        out_seq_lens[row] = min(first_position + num_query_per_req, max_model_len)
        out_temperature[req] = temperature[req]
        out_seeds[req] = seeds[req]
    out_query_start_loc[num_reqs : max_num_reqs + 1] = num_reqs * num_query_per_req
    out_seq_lens[num_reqs:max_num_reqs] = 0
    num_samples = num_reqs * num_speculative_steps
    most_samples = max_num_reqs * num_speculative_steps
    out_sample_indices[num_samples:most_samples] = 0
    out_sample_pos[num_samples:most_samples] = 0
    out_sample_idx_mapping[num_samples:most_samples] = -1
    out_query_slot_mapping[num_reqs * num_query_per_req : max_num_tokens] = PAD_SLOT_ID
