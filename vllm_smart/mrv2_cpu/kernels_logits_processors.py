"""CPU versions of the kernels that edit logits before sampling.

They mirror `penalties`, `bad_words` and `logit_bias` in `vllm.v1.worker.gpu.sample`,
and `vllm.v1.worker.gpu.structured_outputs`. Logits are edited in place; a request's
rows are consecutive, and row `local_pos` sees the drafts of the rows before it.
"""

from itertools import pairwise

import numpy as np
import torch

from vllm_smart.kernels.allowed_tokens.cpu import rule_out_of_row
from vllm_smart.kernels.cpu.launch import compiled_kernel
from vllm_smart.mrv2_cpu.launch import on_numpy

_MINUS_INFINITY = {torch.bfloat16: -(1 << 7), torch.float16: -(1 << 10)}  # their bits


def _penalties_kernel(
    logits,  # [num_tokens, vocab_size] float32
    logits_stride,
    expanded_idx_mapping,  # [num_tokens]
    token_ids,  # [num_tokens]
    expanded_local_pos,  # [num_tokens]
    repetition_penalty,  # [max_num_reqs]
    frequency_penalty,  # [max_num_reqs]
    presence_penalty,  # [max_num_reqs]
    prompt_bin_mask,  # [max_num_reqs, ceil(vocab_size / 32)]
    prompt_bin_mask_stride,
    output_bin_counts,  # [max_num_reqs, vocab_size]
    output_bin_counts_stride,
    vocab_size,
    BLOCK_SIZE,
):
    """Repetition, frequency and presence penalties."""
    repetition = repetition_penalty[expanded_idx_mapping]
    frequency = frequency_penalty[expanded_idx_mapping]
    presence = presence_penalty[expanded_idx_mapping]
    rows = ((repetition != 1) | (frequency != 0) | (presence != 0)).nonzero().squeeze(1)
    req = expanded_idx_mapping[rows]

    counts = output_bin_counts[req]
    for i, row in enumerate(rows.tolist()):
        num_drafts = int(expanded_local_pos[row])
        if num_drafts:
            drafts = token_ids[row - num_drafts + 1 : row + 1].long()
            counts[i].index_add_(0, drafts, counts.new_ones(num_drafts))
    in_output = counts > 0
    seen = in_output | _unpack_bits(prompt_bin_mask[req], vocab_size)

    penalised = logits[rows]
    scale = torch.where(seen, repetition[rows, None], 1.0)
    penalised *= torch.where(penalised > 0, 1.0 / scale, scale)
    penalised -= frequency[rows, None] * counts
    penalised -= presence[rows, None] * in_output
    logits[rows] = penalised


@on_numpy
def _bincount_kernel(
    expanded_idx_mapping,  # [num_reqs]
    all_token_ids,  # [max_num_reqs, max_model_len]
    all_token_ids_stride,
    prompt_len,  # [max_num_reqs]
    prefill_len,  # [max_num_reqs]
    prompt_bin_mask,  # [max_num_reqs, ceil(vocab_size / 32)]
    prompt_bin_mask_stride,
    output_bin_counts,  # [max_num_reqs, vocab_size]
    output_bin_counts_stride,
    BLOCK_SIZE,
):
    """Record a new request's prompt tokens as bits and its output tokens as counts."""
    for req in expanded_idx_mapping:
        prompt, output = np.split(all_token_ids[req, : prefill_len[req]], [prompt_len[req]])
        in_prompt = np.zeros(prompt_bin_mask.shape[1] * 32, dtype=bool)
        in_prompt[prompt] = True
        prompt_bin_mask[req] |= np.packbits(in_prompt, bitorder="little").view(np.int32)
        np.add.at(output_bin_counts[req], output, 1)


@on_numpy
def _bad_words_kernel(
    logits,  # [num_tokens, vocab_size] float32
    logits_stride,
    expanded_idx_mapping,  # [num_tokens]
    bad_word_token_ids,  # [max_num_reqs, max_total_tokens]
    bad_word_token_ids_stride,
    bad_word_offsets,  # [max_num_reqs, max_num_bad_words + 1]
    bad_word_offsets_stride,
    num_bad_words,  # [max_num_reqs]
    all_token_ids,  # [max_num_reqs, max_model_len]
    all_token_ids_stride,
    prompt_len,  # [max_num_reqs]
    total_len,  # [max_num_reqs]
    input_ids,  # [num_tokens]
    expanded_local_pos,  # [num_tokens]
):
    """Forbid the last token of every bad word whose other tokens were just generated."""
    for row, req in enumerate(expanded_idx_mapping):
        if not num_bad_words[req]:
            continue
        num_drafts = expanded_local_pos[row]
        committed = all_token_ids[req, prompt_len[req] : total_len[req]]
        generated = np.append(committed, input_ids[row - num_drafts + 1 : row + 1])
        offsets = bad_word_offsets[req, : num_bad_words[req] + 1]
        for start, end in pairwise(offsets):
            *prefix, last = bad_word_token_ids[req, start:end]
            prefix_start = len(generated) - len(prefix)
            if prefix_start >= 0 and (generated[prefix_start:] == prefix).all():
                logits[row, last] = -np.inf


@on_numpy
def _bias_kernel(
    logits,  # [num_tokens, vocab_size] float32
    logits_stride,
    vocab_size,
    expanded_idx_mapping,  # [num_tokens]
    num_allowed_token_ids,  # [max_num_reqs]
    allowed_token_ids,  # [max_num_reqs, max_num_allowed]
    allowed_token_ids_stride,
    num_logit_bias,  # [max_num_reqs]
    bias_token_ids,  # [max_num_reqs, max_num_bias]
    bias_token_ids_stride,
    bias,  # [max_num_reqs, max_num_bias]
    bias_stride,
    pos,  # [num_tokens]
    min_lens,  # [max_num_reqs]
    num_stop_token_ids,  # [max_num_reqs]
    restore_when_all_masked,  # [max_num_reqs]
    stop_token_ids,  # [max_num_reqs, max_num_stop]
    stop_token_ids_stride,
    BLOCK_SIZE,
    LOGITS_BLOCK_SIZE,
    CHECK_ALL_MASKED_ROWS,
):
    """Allowed tokens, logit bias, and no stop token before the minimum length."""
    for row, req in enumerate(expanded_idx_mapping):
        row_logits = logits[row]
        if count := num_allowed_token_ids[req]:
            allowed = allowed_token_ids[req, :count]
            kept = row_logits[allowed]
            row_logits[:] = -np.inf
            row_logits[allowed] = kept
        if count := num_logit_bias[req]:
            row_logits[bias_token_ids[req, :count]] += bias[req, :count]
        count = num_stop_token_ids[req]
        if count and pos[row] + 1 < min_lens[req]:
            stop = stop_token_ids[req, :count]
            stop_logits = row_logits[stop]
            row_logits[stop] = -np.inf
            may_restore = CHECK_ALL_MASKED_ROWS and restore_when_all_masked[req]
            if may_restore and np.isneginf(row_logits).all():
                finite = np.isfinite(stop_logits)
                row_logits[stop[finite]] = stop_logits[finite]


def _apply_grammar_bitmask_kernel(
    logits,  # [num_tokens, vocab_size]
    logits_stride,
    logits_indices,  # [num_masks], request * MASK_STRIDE + position
    cu_num_logits,  # [num_reqs + 1]
    bitmask,  # [num_masks, ceil(vocab_size / 32)]
    bitmask_stride,
    vocab_size,
    MASK_STRIDE,
    BLOCK_SIZE,
):
    """Forbid the tokens that a request's grammar does not allow."""
    lowest = _MINUS_INFINITY.get(logits.dtype, -np.inf)
    if logits.dtype in _MINUS_INFINITY:  # numba knows no bfloat16
        logits = logits.view(torch.int16)
    _rule_out(logits, lowest, logits_indices, cu_num_logits, bitmask, MASK_STRIDE)


@compiled_kernel
def _rule_out(logits, lowest, logits_indices, cu_num_logits, bitmask, mask_stride):
    for at in range(len(logits_indices)):
        req, position = divmod(logits_indices[at], mask_stride)
        row = cu_num_logits[req] + position
        if row < cu_num_logits[req + 1]:
            rule_out_of_row(logits[row], bitmask[at], lowest)


def _unpack_bits(packed: torch.Tensor, num_bits: int) -> torch.Tensor:
    """[num_rows, num_words] int32, lowest bit first -> [num_rows, num_bits] bool."""
    bits = packed.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32) & 1
    return bits.flatten(1)[:, :num_bits].bool()
