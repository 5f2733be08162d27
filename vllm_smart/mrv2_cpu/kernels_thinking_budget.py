"""CPU versions of the kernels in `vllm.v1.worker.gpu.sample.thinking_budget`.

A request that has spent its budget of reasoning tokens is made to emit the end marker.
"""

import numpy as np

from vllm_smart.mrv2_cpu.launch import on_numpy

FORCED_LOGIT = 1.0e9


def _last_match(tokens: np.ndarray, marker: np.ndarray) -> int:
    """Start of the last occurrence of `marker` in `tokens`, or -1."""
    if len(tokens) < len(marker):
        return -1
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(marker))
    matches = np.flatnonzero((windows == marker).all(axis=1))
    return int(matches[-1]) if len(matches) else -1


@on_numpy
def _update_committed_marker_cache_kernel(
    req_ids,  # [num_reqs]
    thinking_token_budget,  # [max_num_reqs], negative: no budget
    all_token_ids,  # [max_num_reqs, max_model_len]
    all_token_ids_stride,
    total_len,  # [max_num_reqs]
    cached_last_start,  # [max_num_reqs]
    cached_last_end,  # [max_num_reqs]
    cached_scan_pos,  # [max_num_reqs]
    reasoning_start_token_ids,  # [START_LEN]
    natural_reasoning_end_token_ids,  # [NATURAL_END_LEN]
    START_LEN,
    NATURAL_END_LEN,
    MAX_LEN,
    BLOCK,
):
    """Remember where the last start and end markers are in the committed tokens."""
    markers = (
        (cached_last_start, reasoning_start_token_ids),
        (cached_last_end, natural_reasoning_end_token_ids),
    )
    for req in req_ids[thinking_token_budget[req_ids] >= 0]:
        if cached_scan_pos[req] > total_len[req]:
            cached_scan_pos[req] = 0
            cached_last_start[req] = cached_last_end[req] = -1
        scan_pos = cached_scan_pos[req]
        tokens = all_token_ids[req, scan_pos : total_len[req]]
        for cached, marker in markers:
            found = _last_match(tokens, marker)
            if found >= 0:
                cached[req] = scan_pos + found
        cached_scan_pos[req] = max(total_len[req] - (MAX_LEN - 1), 0)


@on_numpy
def _thinking_budget_kernel(
    logits,  # [num_tokens, vocab_size] float32, in and out
    logits_stride,
    expanded_idx_mapping,  # [num_tokens]
    thinking_token_budget,  # [max_num_reqs], negative: no budget
    all_token_ids,  # [max_num_reqs, max_model_len]
    all_token_ids_stride,
    total_len,  # [max_num_reqs]
    input_ids,  # [num_tokens]
    expanded_local_pos,  # [num_tokens]
    cached_last_start,  # [max_num_reqs]
    cached_last_end,  # [max_num_reqs]
    reasoning_start_token_ids,  # [START_LEN]
    natural_reasoning_end_token_ids,  # [NATURAL_END_LEN]
    reasoning_end_token_ids,  # [END_LEN]
    START_LEN,
    NATURAL_END_LEN,
    END_LEN,
):
    """Force the next token of the end marker where the budget is spent."""
    for row, req in enumerate(expanded_idx_mapping):
        budget = thinking_token_budget[req]
        if budget < 0:
            continue
        num_committed, num_drafts = total_len[req], expanded_local_pos[row]
        drafts = input_ids[row - num_drafts + 1 : row + 1]
        tokens = np.append(all_token_ids[req, :num_committed], drafts)

        # The cache covers the committed tokens: a newer marker reaches into the drafts.
        start_from = max(num_committed - START_LEN + 1, 0)
        newer_start = _last_match(tokens[start_from:], reasoning_start_token_ids)
        last_start = start_from + newer_start if newer_start >= 0 else cached_last_start[req]
        end_from = max(num_committed - NATURAL_END_LEN + 1, 0)
        newer_end = _last_match(tokens[end_from:], natural_reasoning_end_token_ids)
        last_end = end_from + newer_end if newer_end >= 0 else cached_last_end[req]

        if last_start < 0 or last_start <= last_end:
            continue
        if len(tokens) - (last_start + START_LEN) < budget:
            continue
        num_emitted = max(
            (
                length
                for length in range(1, min(END_LEN - 1, len(tokens)) + 1)
                if (tokens[-length:] == reasoning_end_token_ids[:length]).all()
            ),
            default=0,
        )
        logits[row, reasoning_end_token_ids[num_emitted]] = FORCED_LOGIT
