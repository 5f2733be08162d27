"""CPU versions of the kernels that draw the token after the accepted drafts.

They mirror the second half of `rejection_sampler_utils` in
`vllm.v1.worker.gpu.spec_decode`. Watermarks are not supported.
"""

import numpy as np
import torch

from vllm_smart.kernels.cpu.launch import compiled_kernel
from vllm_smart.mrv2_cpu.kernels_sampling import block_argmax, gumbel_scores
from vllm_smart.mrv2_cpu.launch import argmax


def _resample_kernel(
    resampled_local_argmax,  # [num_reqs, num_blocks]
    resampled_local_argmax_stride,
    resampled_local_max,  # [num_reqs, num_blocks]
    resampled_local_max_stride,
    target_logits,  # [num_logits, vocab_size]
    target_logits_stride,
    target_rejected_logsumexp,  # [num_reqs]
    draft_logits,  # [max_num_reqs, num_speculative_steps, vocab_size]
    draft_logits_stride_0,
    draft_logits_stride_1,
    draft_rejected_logsumexp,  # [num_reqs]
    rejected_step,  # [num_reqs]
    cu_num_logits,  # [num_reqs + 1]
    expanded_idx_mapping,  # [num_logits]
    draft_sampled,  # [num_logits], each row's input token
    temp,  # [max_num_reqs]
    seed,  # [max_num_reqs]
    pos,  # [num_logits]
    cumulative_log_p,
    contexts,
    contexts_stride,
    watermarking,
    watermarking_skip_mask,
    watermark_key_0,
    watermark_key_1,
    vocab_size,
    BLOCK_SIZE,
    HAS_DRAFT_LOGITS,
    USE_FP64,
    USE_BLOCK_VERIFICATION,
    CONTEXT_WIDTH,
    WATERMARK,
    DEDUPLICATE_CONTEXTS,
):
    """Draw the token after the accepted drafts, from what a rejection leaves over."""
    if USE_BLOCK_VERIFICATION or WATERMARK:
        raise NotImplementedError("block verification and watermarks are not supported on CPU")
    bounds, num_accepted = cu_num_logits.numpy(), rejected_step.numpy()
    row = bounds[:-1] + num_accepted
    is_bonus = row == bounds[1:] - 1
    state = expanded_idx_mapping.numpy()[row]
    temperature = temp.numpy()[state]
    # A greedy rejection has stored the target's argmax already.
    req = np.flatnonzero(is_bonus | (temperature != 0))
    if not len(req):
        return
    row, state, temperature = row[req], state[req], temperature[req]

    residual = target_logits[row, :vocab_size].float()
    token = np.where(is_bonus[req], -1, draft_sampled.numpy()[(row + 1) % len(draft_sampled)])
    drafted = np.flatnonzero(token >= 0)
    if len(drafted) and HAS_DRAFT_LOGITS:
        at = req[drafted]
        draft = draft_logits[state[drafted], num_accepted[at], :vocab_size].float()
        draft = draft / torch.from_numpy(temperature[drafted, None])
        draft -= draft_rejected_logsumexp[at, None]
        target = residual[drafted] - target_rejected_logsumexp[at, None]
        # log(max(p - q, 0)) from log p and log q
        ratio = (draft - target).exp_()
        residual[drafted] = torch.where(ratio < 1, target + torch.log1p(-ratio), -torch.inf)
    elif len(drafted):
        residual[drafted, token[drafted]] = -torch.inf

    scores = gumbel_scores(
        residual,
        temperature,
        seed.numpy()[state],
        pos.numpy()[row],
        apply_temperature=False,
        float64=USE_FP64,
    )
    block_max = np.empty((len(req), resampled_local_max.shape[1]), scores.dtype)
    block_idx = np.empty(block_max.shape, np.int64)
    block_argmax(scores, BLOCK_SIZE, block_max, block_idx)
    resampled_local_max.numpy()[req] = block_max
    resampled_local_argmax.numpy()[req] = block_idx


@compiled_kernel
def _insert_resampled_kernel(
    sampled,  # [num_reqs, num_speculative_steps + 1]
    sampled_stride,
    num_sampled,  # [num_reqs]: accepted drafts in, sampled tokens out
    resampled_local_argmax,  # [num_reqs, num_blocks]
    resampled_local_argmax_stride,
    resampled_local_max,  # [num_reqs, num_blocks]
    resampled_local_max_stride,
    resample_num_blocks,
    cu_num_logits,  # [num_reqs + 1]
    expanded_idx_mapping,  # [num_logits]
    temp,  # [max_num_reqs]
    PADDED_RESAMPLE_NUM_BLOCKS,
):
    """Append the resampled tokens to the accepted drafts."""
    for req in range(len(num_sampled)):
        num_accepted = num_sampled[req]
        row = cu_num_logits[req] + num_accepted
        num_sampled[req] = num_accepted + 1
        is_bonus = row == cu_num_logits[req + 1] - 1
        if temp[expanded_idx_mapping[row]] == 0 and not is_bonus:
            continue
        best_block = argmax(resampled_local_max[req])
        sampled[req, num_accepted] = resampled_local_argmax[req, best_block]
