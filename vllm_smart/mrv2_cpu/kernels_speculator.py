"""CPU versions of the kernels that prepare a drafter's inputs.

They mirror `target_dependent_ar` (EAGLE, EAGLE-3, MTP) and `standalone_ar` (a draft
model of its own) in `vllm.v1.worker.gpu.spec_decode`.
"""

from vllm_smart.kernels.cpu.launch import compiled_kernel


@compiled_kernel
def _prepare_prefill_inputs_kernel(
    last_token_indices,  # [max_num_reqs]
    draft_current_step,  # scalar
    draft_input_ids,  # [max_num_tokens]
    draft_positions,  # [max_num_tokens]
    draft_query_start_loc,  # [max_num_reqs + 1]
    draft_seq_lens,  # [max_num_reqs]
    target_input_ids,  # [num_tokens]
    target_positions,  # [num_tokens]
    idx_mapping,  # [num_reqs]
    last_sampled,  # [max_num_reqs, 1]
    next_prefill_tokens,  # [num_lookahead, max_num_reqs]
    num_sampled,  # [num_reqs]
    num_rejected,  # [num_reqs]
    query_start_loc,  # [num_reqs + 1]
    seq_lens,  # [num_reqs]
    max_num_reqs,
    BLOCK_SIZE,
):
    """Shift the target's tokens by one and end each request with its newest token."""
    num_reqs = len(idx_mapping)
    for row in range(num_reqs):
        req = idx_mapping[row]
        start = query_start_loc[row]
        last = query_start_loc[row + 1] - num_rejected[row] - 1
        for token in range(start, last):
            draft_input_ids[token] = target_input_ids[token + 1]
        is_decoding = num_sampled[row] > 0
        draft_input_ids[last] = last_sampled[req, 0] if is_decoding else next_prefill_tokens[0, req]
        draft_positions[start : last + 1] = target_positions[start : last + 1]
        last_token_indices[row] = last
        draft_query_start_loc[row] = start
        draft_seq_lens[row] = seq_lens[row]
    draft_query_start_loc[num_reqs:] = query_start_loc[num_reqs]
    draft_seq_lens[num_reqs:] = 0
    last_token_indices[num_reqs:] = 0
    draft_current_step[...] = 0


@compiled_kernel
def _prepare_decode_inputs_kernel(
    draft_tokens,  # [num_reqs]
    draft_tokens_stride,
    target_seq_lens,  # [num_reqs]
    num_rejected,  # [num_reqs]
    input_ids,  # [max_num_tokens]
    positions,  # [max_num_tokens]
    sample_src_positions,  # [max_num_reqs]
    query_start_loc,  # [max_num_reqs + 1]
    seq_lens,  # [max_num_reqs]
    max_model_len,
    max_num_reqs,
    BLOCK_SIZE,
    ADVANCE_DRAFT_POSITIONS,
):
    """One query token per request: its first draft, one position further."""
    num_reqs = len(draft_tokens)
    for row in range(num_reqs):
        input_ids[row] = draft_tokens[row]
        sample_src_positions[row] += 1
        seq_len = target_seq_lens[row] - num_rejected[row]
        if ADVANCE_DRAFT_POSITIONS:
            positions[row] = min(positions[row] + 1, max_model_len - 1)
            seq_len = min(seq_len + 1, max_model_len)
        seq_lens[row] = seq_len
    seq_lens[num_reqs:] = 0
    for row in range(max_num_reqs + 1):
        query_start_loc[row] = min(row, num_reqs)


def _update_draft_inputs_kernel(
    output_draft_tokens,  # [max_num_reqs, num_speculative_steps]
    output_draft_tokens_stride,
    next_input_hidden_states,  # [max_num_tokens, hidden_size]
    next_input_hidden_states_stride,
    input_ids,  # [max_num_tokens]
    positions,  # [max_num_tokens]
    sample_src_positions,  # [max_num_reqs]
    seq_lens,  # [max_num_reqs]
    draft_tokens,  # [num_reqs]
    current_draft_step,  # scalar
    hidden_states,  # [num_tokens, hidden_size]
    hidden_states_stride,
    hidden_size,
    max_model_len,
    num_speculative_steps,
    BLOCK_SIZE,
    ADVANCE_DRAFT_POSITIONS,
):
    """Store the new drafts and make them the next draft forward's input."""
    num_reqs = len(draft_tokens)
    if int(current_draft_step) < num_speculative_steps - 1:
        next_input_hidden_states[:num_reqs] = hidden_states[:num_reqs]
    _store_drafts(
        output_draft_tokens,
        input_ids,
        positions,
        sample_src_positions,
        seq_lens,
        draft_tokens,
        current_draft_step,
        max_model_len,
        num_speculative_steps,
        ADVANCE_DRAFT_POSITIONS,
    )


@compiled_kernel
def _store_drafts(
    output_draft_tokens,
    input_ids,
    positions,
    sample_src_positions,
    seq_lens,
    draft_tokens,
    current_draft_step,
    max_model_len,
    num_speculative_steps,
    advance_draft_positions,
):
    step = current_draft_step[()]
    for row in range(len(draft_tokens)):
        output_draft_tokens[row, step] = draft_tokens[row]
        if step >= num_speculative_steps - 1:
            continue
        input_ids[row] = draft_tokens[row]
        sample_src_positions[row] += 1
        if advance_draft_positions:
            positions[row] = min(positions[row] + 1, max_model_len - 1)
            seq_lens[row] = min(seq_lens[row] + 1, max_model_len)


@compiled_kernel
def _prepare_standalone_prefill_inputs_kernel(
    target_input_ids,  # [num_tokens]
    target_positions,  # [num_tokens]
    last_sampled,  # [max_num_reqs, 1]
    idx_mapping,  # [num_reqs]
    out_input_ids,  # [max_num_tokens + max_num_reqs]
    out_positions,  # [max_num_tokens + max_num_reqs]
    last_token_indices,  # [max_num_reqs]
    out_query_start_loc,  # [max_num_reqs + 1]
    out_seq_lens,  # [max_num_reqs]
    query_start_loc,  # [num_reqs + 1]
    seq_lens,  # [num_reqs]
    num_rejected,  # [num_reqs]
    max_num_reqs,
    max_model_len,
    BLOCK_SIZE,
):
    """Give the draft model the accepted tokens and, one row more, the newest token."""
    num_reqs = len(idx_mapping)
    for row in range(num_reqs):
        start = query_start_loc[row]
        query_len = query_start_loc[row + 1] - start
        num_valid = query_len - num_rejected[row]
        out_start = start + row
        for i in range(query_len + 1):
            out_input_ids[out_start + i] = target_input_ids[start + i] if i < num_valid else 0
            out_positions[out_start + i] = min(target_positions[start] + i, max_model_len - 1)
        out_input_ids[out_start + num_valid] = last_sampled[idx_mapping[row], 0]
        last_token_indices[row] = out_start + num_valid
        out_query_start_loc[row] = out_start
        out_seq_lens[row] = min(seq_lens[row] + 1, max_model_len)
    out_query_start_loc[num_reqs:] = query_start_loc[num_reqs] + num_reqs
    out_seq_lens[num_reqs:] = 0
    last_token_indices[num_reqs:] = 0
