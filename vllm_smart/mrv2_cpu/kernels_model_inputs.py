"""CPU versions of the kernels in vLLM's `mm.rope`, `model_states.prompt_embeds` and `metrics.logits`.

What a model takes beside its tokens: positions of several dimensions, and embeddings in place of
tokens; and what is counted in the logits that it returns.
"""

import numpy as np
import torch

from vllm_smart.kernels.cpu.launch import array_at, compiled_kernel


@compiled_kernel
def _prepare_rope_positions_kernel(
    positions,  # [NUM_DIMS, max_num_tokens + 1]
    positions_stride,
    prefill_positions,  # [max_num_reqs * NUM_DIMS, max_model_len]
    prefill_positions_stride0,
    prefill_positions_stride1,
    prefill_delta,  # [max_num_reqs]
    idx_mapping,  # [num_reqs]
    query_start_loc,  # [num_reqs + 1]
    prefill_lens,  # [max_num_reqs]
    num_computed_tokens,  # [max_num_reqs]
    BLOCK_SIZE,
    NUM_DIMS,
):
    """Look prompts' positions up; generated text goes on from where its prompt's positions end."""
    for row in range(len(idx_mapping)):
        req = idx_mapping[row]
        start, end = query_start_loc[row], query_start_loc[row + 1]
        num_computed = num_computed_tokens[req]
        is_prefill = num_computed < prefill_lens[req]
        for dimension in range(NUM_DIMS):
            for token in range(start, end):
                position = num_computed + token - start
                if is_prefill:
                    position = prefill_positions[NUM_DIMS * req + dimension, position]
                else:
                    position += prefill_delta[req]
                positions[dimension, token] = position


def _apply_prompt_embeds_kernel(
    inputs_embeds,  # [max_num_tokens, hidden_size] of any floating-point type
    inputs_embeds_stride,
    embeds_ptrs,  # [max_num_reqs] addresses of [embeds_len, hidden_size], of the same type
    mask_ptrs,  # [max_num_reqs] addresses of [embeds_len] uint8, or 0
    embeds_lens,  # [max_num_reqs], 0 for prompts of tokens alone
    idx_mapping,  # [num_reqs]
    query_start_loc,  # [num_reqs + 1]
    num_computed_tokens,  # [max_num_reqs]
    hidden_size,
    TOKEN_BLOCK,
    BLOCK_SIZE,
):
    """Put what a request gave as embeddings in place of the embeddings of its tokens."""
    # Compiled code knows no bfloat16; what is only copied may be taken for integers.
    _copy_prompt_embeds(
        inputs_embeds.view(torch.int16),
        embeds_ptrs,
        mask_ptrs,
        embeds_lens,
        idx_mapping,
        query_start_loc,
        num_computed_tokens,
        hidden_size * inputs_embeds.itemsize // 2,
    )


@compiled_kernel
def _copy_prompt_embeds(
    inputs_embeds, embeds_ptrs, mask_ptrs, embeds_lens, idx_mapping, query_start, num_computed, width
):
    for row in range(len(idx_mapping)):
        req = idx_mapping[row]
        num_embeds, first = embeds_lens[req], num_computed[req]
        if first >= num_embeds:
            continue
        embeds = array_at(embeds_ptrs[req], (num_embeds, width), np.int16)
        is_masked = mask_ptrs[req] != 0
        is_token = array_at(mask_ptrs[req], (num_embeds,), np.uint8)
        num_rows = min(query_start[row + 1] - query_start[row], num_embeds - first)
        for i in range(num_rows):
            if not (is_masked and is_token[first + i]):
                inputs_embeds[query_start[row] + i, :width] = embeds[first + i]


def _num_nans_kernel(
    logits,  # [num_rows, vocab_size] of any floating-point type
    logits_stride,
    num_nans,  # [num_rows]
    vocab_size,
    BLOCK_SIZE,
):
    """Count each row's logits that are no numbers."""
    num_nans.copy_(logits[:, :vocab_size].isnan().sum(dim=1))
