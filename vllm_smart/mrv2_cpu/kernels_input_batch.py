"""CPU versions of the kernels in `vllm.v1.worker.gpu.input_batch`.

Function names are vLLM's; parameters are the kernel's arguments without their
`_ptr` suffix. Arrays share memory with vLLM's tensors and are written in place.
"""

from vllm_smart.kernels.cpu.launch import compiled_kernel


@compiled_kernel
def _prepare_prefill_inputs_kernel(
    input_ids,  # [max_num_tokens]
    next_prefill_tokens,  # [num_lookahead, max_num_reqs]
    next_prefill_tokens_stride,
    num_lookahead,
    idx_mapping,  # [num_reqs]
    query_start_loc,  # [num_reqs + 1]
    all_token_ids,  # [max_num_reqs, max_model_len]
    all_token_ids_stride,
    prefill_lens,  # [max_num_reqs]
    num_computed_tokens,  # [max_num_reqs]
    BLOCK_SIZE,
    LOOKAHEAD_BLOCK,
):
    """Copy each prefilling request's scheduled tokens, and remember the next ones."""
    for row in range(len(idx_mapping)):
        req = idx_mapping[row]
        first = num_computed_tokens[req]
        if first >= prefill_lens[req]:
            continue
        start, end = query_start_loc[row], query_start_loc[row + 1]
        last = first + end - start
        input_ids[start:end] = all_token_ids[req, first:last]
        for ahead in range(num_lookahead):
            has_token = last + ahead < prefill_lens[req]
            next_prefill_tokens[ahead, req] = all_token_ids[req, last + ahead] if has_token else 0


@compiled_kernel
def _prepare_pos_seq_lens_kernel(
    pos,  # [max_num_tokens]
    seq_lens,  # [max_num_reqs]
    idx_mapping,  # [num_reqs]
    query_start_loc,  # [num_reqs + 1]
    num_computed_tokens,  # [max_num_reqs]
    max_num_reqs,
    BLOCK_SIZE,
):
    """Lay out consecutive positions per request; unused sequence lengths become 0."""
    num_reqs = len(idx_mapping)
    for row in range(num_reqs):
        start, end = query_start_loc[row], query_start_loc[row + 1]
        num_computed = num_computed_tokens[idx_mapping[row]]
        seq_lens[row] = num_computed + end - start
        for token in range(start, end):
            pos[token] = num_computed + token - start
    seq_lens[num_reqs:] = 0


@compiled_kernel
def _combine_sampled_and_draft_tokens_kernel(
    input_ids,  # [max_num_tokens]
    idx_mapping,  # [num_reqs]
    last_sampled_tokens,  # [max_num_reqs, 1]
    query_start_loc,  # [num_reqs + 1]
    seq_lens,  # [num_reqs]
    prefill_len,  # [max_num_reqs]
    draft_tokens,  # [max_num_reqs, num_speculative_steps]
    draft_tokens_stride,
    cu_num_logits,  # [num_reqs + 1]
    logits_indices,  # [num_logits]
    BLOCK_SIZE,
    NUM_NEW_SAMPLED_TOKENS=1,
):
    """Put the last sampled token and the drafts where decoding requests read them."""
    for row in range(len(idx_mapping)):
        req = idx_mapping[row]
        first_logit = cu_num_logits[row]
        num_logits = cu_num_logits[row + 1] - first_logit
        start = query_start_loc[row + 1] - num_logits
        for i in range(num_logits):
            logits_indices[first_logit + i] = start + i
        if seq_lens[row] <= prefill_len[req]:
            continue
        # Prompt tokens among the logits rows stay as they are.
        if NUM_NEW_SAMPLED_TOKENS > 0 and seq_lens[row] - num_logits >= prefill_len[req]:
            input_ids[start] = last_sampled_tokens[req, 0]
        for i in range(num_logits - NUM_NEW_SAMPLED_TOKENS):
            input_ids[start + NUM_NEW_SAMPLED_TOKENS + i] = draft_tokens[req, i]


@compiled_kernel
def _get_num_sampled_and_rejected_kernel(
    num_sampled,  # [num_reqs], in and out
    num_rejected,  # [num_reqs]
    seq_lens,  # [num_reqs]
    cu_num_logits,  # [num_reqs + 1]
    idx_mapping,  # [num_reqs]
    prefill_len,  # [max_num_reqs]
):
    """A request still prefilling has neither sampled nor rejected anything."""
    for row in range(len(idx_mapping)):
        if seq_lens[row] < prefill_len[idx_mapping[row]]:
            num_sampled[row] = 0
            num_rejected[row] = 0
        else:
            num_logits = cu_num_logits[row + 1] - cu_num_logits[row]
            num_rejected[row] = num_logits - num_sampled[row]


@compiled_kernel
def _post_update_kernel(
    idx_mapping,  # [num_reqs], negative rows are skipped
    num_computed_tokens,  # [max_num_reqs]
    last_sampled_tokens,  # [max_num_reqs, 1]
    output_bin_counts,  # [max_num_reqs, vocab_size] or None
    output_bin_counts_stride,
    sampled_tokens,  # [num_reqs, num_speculative_steps + 1]
    sampled_tokens_stride,
    num_sampled,  # [num_reqs]
    num_rejected,  # [num_reqs]
    query_start_loc,  # [num_reqs + 1] or None
    all_token_ids,  # [max_num_reqs, max_model_len]
    all_token_ids_stride,
    total_len,  # [max_num_reqs]
    num_warps=1,
):
    """Append the sampled tokens to each request's state."""
    for row in range(len(idx_mapping)):
        req = idx_mapping[row]
        if req < 0:
            continue
        for i in range(num_sampled[row]):
            token = sampled_tokens[row, i]
            last_sampled_tokens[req, 0] = token
            all_token_ids[req, total_len[req] + i] = token
            if output_bin_counts is not None:
                output_bin_counts[req, token] += 1
        total_len[req] += num_sampled[row]
        if query_start_loc is not None:
            num_computed_tokens[req] += query_start_loc[row + 1] - query_start_loc[row]
        num_computed_tokens[req] -= num_rejected[row]


@compiled_kernel
def _post_update_num_computed_tokens_kernel(
    idx_mapping,  # [num_reqs]
    num_computed_tokens,  # [max_num_reqs]
    query_start_loc,  # [num_reqs + 1]
):
    """Count the scheduled tokens as computed."""
    for row in range(len(idx_mapping)):
        query_len = query_start_loc[row + 1] - query_start_loc[row]
        num_computed_tokens[idx_mapping[row]] += query_len


@compiled_kernel
def _expand_idx_mapping_kernel(
    idx_mapping,  # [num_reqs]
    expanded_idx_mapping,  # [num_logits]
    expanded_local_pos,  # [num_logits]
    cu_num_logits,  # [num_reqs + 1]
    BLOCK_SIZE,
):
    """Give every logits row its request's state index and its offset in the request."""
    for row in range(len(idx_mapping)):
        start = cu_num_logits[row]
        for logit in range(start, cu_num_logits[row + 1]):
            expanded_idx_mapping[logit] = idx_mapping[row]
            expanded_local_pos[logit] = logit - start
