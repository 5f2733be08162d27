"""CPU versions of the kernels that prepare the inputs of several MTP heads.

They mirror `vllm.v1.worker.gpu.spec_decode.multi_module_mtp`. Where drafts were rejected, the heads run
over the last rows of the step before once more: these stand first, and the step's own rows after them.
"""

from vllm_smart.kernels.cpu.launch import compiled_kernel


@compiled_kernel
def _prepare_input_buffers_kernel(
    last_token_indices,  # [max_num_reqs]
    draft_input_ids,  # [max_num_tokens]
    draft_positions,  # [max_num_tokens]
    draft_seq_lens,  # [max_num_reqs]
    target_input_ids,  # [num_tokens]
    target_positions,  # [num_tokens]
    cached_draft_input_ids,  # [max_num_reqs, num_speculative_steps - 1]
    cached_draft_input_ids_stride0,
    draft_input_id_overrides,  # [max_num_reqs, num_speculative_steps - 1]
    draft_input_id_overrides_stride0,
    idx_mapping,  # [num_reqs]
    last_sampled,  # [max_num_reqs, 1]
    next_prefill_tokens,  # [num_lookahead, max_num_reqs]
    next_prefill_tokens_stride0,
    num_sampled,  # [num_reqs]
    num_rejected,  # [num_reqs]
    target_seq_lens,  # [>= num_reqs]
    query_start_loc,  # [max_num_reqs + 1]
    max_num_reqs,
    num_speculative_steps,
    BLOCK_SIZE,
):
    num_reqs, num_cached = len(idx_mapping), num_speculative_steps - 1
    for row in range(num_reqs):
        req = idx_mapping[row]
        start, end = query_start_loc[row], query_start_loc[row + 1]
        again = max(0, num_rejected[row] - 1)
        num_rows = end - start - num_rejected[row]
        draft_seq_lens[row] = target_seq_lens[row] - again
        decodes = num_sampled[row] > 0
        for step in range(num_cached):
            known = -1 if decodes else next_prefill_tokens[step + 1, req]
            draft_input_id_overrides[row, step] = known
        first_position = target_positions[start]
        # From the end, as rows move towards it where both lie in one buffer.
        for place in range(num_rows - 1, -1, -1):
            draft_positions[start + again + place] = target_positions[start + place]
        for place in range(1, num_rows):
            draft_input_ids[start + again + place - 1] = target_input_ids[start + place]
        last = start + again + num_rows - 1
        last_token_indices[row] = last
        draft_input_ids[last] = last_sampled[req, 0] if decodes else next_prefill_tokens[0, req]
        for place in range(again):
            draft_input_ids[start + place] = cached_draft_input_ids[req, num_cached - again + place]
            draft_positions[start + place] = first_position - again + place
    query_start_loc[num_reqs : max_num_reqs + 1] = query_start_loc[num_reqs]
    draft_seq_lens[num_reqs:max_num_reqs] = 0
    last_token_indices[num_reqs:max_num_reqs] = 0


def _prepare_input_hidden_states_and_embeddings_kernel(
    draft_input_hidden_states,  # [max_num_tokens, hidden_size]
    draft_input_hidden_states_stride0,
    target_hidden_states,  # [num_tokens, hidden_size]
    target_hidden_states_stride0,
    cached_target_hidden_states,  # [max_num_reqs, num_speculative_steps - 1, hidden_size]
    cached_target_hidden_states_stride0,
    cached_target_hidden_states_stride1,
    input_embeds,  # [max_num_tokens, hidden_size]
    input_embeds_stride0,
    cached_draft_input_embeds,  # [max_num_reqs, num_speculative_steps - 1, hidden_size]
    cached_draft_input_embeds_stride0,
    cached_draft_input_embeds_stride1,
    idx_mapping,  # [num_reqs]
    num_rejected,  # [num_reqs]
    query_start_loc,  # [max_num_reqs + 1]
    num_speculative_steps,
    hidden_size,
    BLOCK_SIZE_Q,
    BLOCK_SIZE_H,
    USE_INPUT_EMBEDS,
):
    starts, rejected = query_start_loc.tolist(), num_rejected.tolist()
    for row, req in enumerate(idx_mapping.tolist()):
        start, again = starts[row], max(0, rejected[row] - 1)
        num_rows, own = starts[row + 1] - start - rejected[row], start + again
        draft_input_hidden_states[own : own + num_rows] = target_hidden_states[start : start + num_rows]
        if not again:
            continue
        draft_input_hidden_states[start:own] = cached_target_hidden_states[req, -again:]
        if USE_INPUT_EMBEDS:
            input_embeds[start:own] = cached_draft_input_embeds[req, -again:]


def _pad_trailing_draft_slots_kernel(
    slot_mappings,  # [num_groups, max_num_tokens]
    slot_mappings_stride0,
    query_start_loc,  # [max_num_reqs + 1]
    last_token_indices,  # [num_reqs]
    PAD_ID,
    BLOCK_SIZE,
):
    starts = query_start_loc.tolist()
    for row, last in enumerate(last_token_indices.tolist()):
        slot_mappings[:, last + 1 : starts[row + 1]] = PAD_ID


def _cache_inputs_kernel(
    draft_input_ids,  # [max_num_tokens]
    draft_input_embeds,  # [max_num_tokens, hidden_size]
    draft_input_embeds_stride0,
    draft_input_hidden_states,  # [max_num_tokens, hidden_size]
    draft_input_hidden_states_stride0,
    cached_draft_input_ids,  # [max_num_reqs, num_speculative_steps - 1]
    cached_draft_input_ids_stride0,
    cached_draft_input_embeds,  # [max_num_reqs, num_speculative_steps - 1, hidden_size]
    cached_draft_input_embeds_stride0,
    cached_draft_input_embeds_stride1,
    cached_target_hidden_states,  # the same
    cached_target_hidden_states_stride0,
    cached_target_hidden_states_stride1,
    idx_mapping,  # [num_reqs]
    last_token_indices,  # [num_reqs]
    query_start_loc,  # [max_num_reqs + 1]
    num_speculative_steps,
    hidden_size,
    BLOCK_SIZE,
    USE_INPUT_EMBEDS,
):
    starts, ends = query_start_loc.tolist(), last_token_indices.tolist()
    for row, req in enumerate(idx_mapping.tolist()):
        end = ends[row] + 1
        num = min(num_speculative_steps - 1, end - starts[row])
        if req < 0 or num <= 0:
            continue
        rows = slice(end - num, end)
        cached_draft_input_ids[req, -num:] = draft_input_ids[rows]
        cached_target_hidden_states[req, -num:] = draft_input_hidden_states[rows]
        if USE_INPUT_EMBEDS:
            cached_draft_input_embeds[req, -num:] = draft_input_embeds[rows]


def _shift_input_ids_kernel(
    input_ids,  # [max_num_tokens]
    idx_mapping,  # [num_reqs]
    query_start_loc,  # [max_num_reqs + 1]
    last_token_indices,  # [num_reqs]
    draft_tokens,  # [num_reqs]
    BLOCK_SIZE,
):
    _shift(input_ids, idx_mapping, query_start_loc, last_token_indices, draft_tokens)


def _shift_input_embeds_kernel(
    input_embeds,  # [max_num_tokens, hidden_size]
    input_embeds_stride0,
    draft_embeds,  # [num_reqs, hidden_size]
    draft_embeds_stride0,
    idx_mapping,  # [num_reqs]
    query_start_loc,  # [max_num_reqs + 1]
    last_token_indices,  # [num_reqs]
    hidden_size,
    BLOCK_SIZE_Q,
    BLOCK_SIZE_H,
):
    _shift(input_embeds, idx_mapping, query_start_loc, last_token_indices, draft_embeds)


def _shift(values, idx_mapping, query_start_loc, last_token_indices, drafts):
    """Shift each request's rows by one towards its first, and append what was drafted."""
    starts, ends = query_start_loc.tolist(), last_token_indices.tolist()
    for row, req in enumerate(idx_mapping.tolist()):
        if req < 0:
            continue
        start, last = starts[row], ends[row]
        values[start:last] = values[start + 1 : last + 1].clone()
        values[last] = drafts[row]
