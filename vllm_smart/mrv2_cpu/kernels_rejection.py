"""CPU versions of the kernels that verify a chain of drafts.

They mirror `rejection_sampler` and `rejection_sampler_utils` in
`vllm.v1.worker.gpu.spec_decode`, up to the first rejected draft. Block verification is
not supported.
"""

import numpy as np
import torch

from vllm_smart.kernels.cpu.launch import compiled, compiled_kernel
from vllm_smart.mrv2_cpu.kernels_sampling import block_argmax
from vllm_smart.mrv2_cpu.launch import argmax
from vllm_smart.mrv2_cpu.noise import philox_uniform


@compiled_kernel
def _flatten_sampled_kernel(
    flat_sampled,  # [num_logits]
    sampled,  # [num_reqs, num_speculative_steps + 1]
    sampled_stride,
    num_sampled,  # [num_reqs]
    cu_num_logits,  # [num_reqs + 1]
    num_warps=1,
):
    """Put each request's sampled tokens in its logits rows."""
    for row in range(len(num_sampled)):
        start = cu_num_logits[row]
        for i in range(num_sampled[row]):
            flat_sampled[start + i] = sampled[row, i]


@compiled_kernel
def _gather_draft_sampled_kernel(
    draft_sampled,  # [num_logits]
    pos,  # [num_logits]
    input_ids,  # [num_tokens]
    positions,  # [num_tokens]
    logits_indices,  # [num_logits]
    expanded_idx_mapping,  # [num_logits]
    expanded_local_pos,  # [num_logits]
    prefill_len,  # [max_num_reqs]
    num_logits,
    BLOCK_SIZE,
):
    """Input token and position of each logits row; -1 where there cannot be a draft."""
    for row in range(num_logits):
        token = logits_indices[row]
        pos[row] = positions[token]
        local_pos = expanded_local_pos[row]
        starts_in_prefill = pos[row] - local_pos < prefill_len[expanded_idx_mapping[row]]
        is_placeholder = local_pos > 0 and starts_in_prefill
        draft_sampled[row] = -1 if is_placeholder else input_ids[token]


def _compute_local_logits_stats_kernel(
    target_local_argmax,  # [num_logits, num_blocks]
    target_local_argmax_stride,
    target_local_max,  # [num_logits, num_blocks]
    target_local_max_stride,
    target_local_sumexp,  # [num_logits, num_blocks]
    target_local_sumexp_stride,
    draft_local_max,  # [num_logits, num_blocks]
    draft_local_max_stride,
    draft_local_sumexp,  # [num_logits, num_blocks]
    draft_local_sumexp_stride,
    target_logits,  # [num_logits, vocab_size]
    target_logits_stride,
    draft_logits,  # [max_num_reqs, num_speculative_steps, vocab_size], before temperature
    draft_logits_stride_0,
    draft_logits_stride_1,
    expanded_idx_mapping,  # [num_logits]
    expanded_local_pos,  # [num_logits]
    temp,  # [max_num_reqs]
    vocab_size,
    num_speculative_steps,
    BLOCK_SIZE,
    HAS_DRAFT_LOGITS,
):
    """Maximum of each vocabulary block, and its sum of exponentials for random rows."""
    target_logits = target_logits[:, :vocab_size]
    block_argmax(
        target_logits.float().numpy(),
        BLOCK_SIZE,
        target_local_max.numpy(),
        target_local_argmax.numpy(),
    )
    idx_mapping, local_pos = expanded_idx_mapping.numpy(), expanded_local_pos.numpy()
    temperature = temp.numpy()[idx_mapping]
    # The last row of a request has no draft after it, and needs none of this.
    has_draft = np.append(local_pos[1:], 0) > 0
    rows = np.flatnonzero(has_draft & (temperature != 0))
    if not len(rows):
        return
    target_local_sumexp[rows] = _block_sumexp(
        target_logits[rows].float(), target_local_max[rows], BLOCK_SIZE
    )
    if HAS_DRAFT_LOGITS:
        drafted = draft_logits[idx_mapping[rows], local_pos[rows], :vocab_size].float()
        drafted /= torch.from_numpy(temperature[rows, None])
        draft_max = draft_local_max[rows]
        block_argmax(
            drafted.numpy(), BLOCK_SIZE, draft_max.numpy(), np.empty(draft_max.shape, np.int64)
        )
        draft_local_max[rows] = draft_max
        draft_local_sumexp[rows] = _block_sumexp(drafted, draft_max, BLOCK_SIZE)


def _block_sumexp(logits: torch.Tensor, block_max: torch.Tensor, block_size: int) -> torch.Tensor:
    """Sum of exp(logit - block maximum) per block; 0 for a block of only -inf."""
    columns = []
    for block, block_logits in enumerate(logits.split(block_size, dim=1)):
        maximum = block_max[:, block]
        sumexp = (block_logits - maximum[:, None]).exp_().sum(dim=1)
        columns.append(sumexp.masked_fill_(maximum == -torch.inf, 0.0))
    return torch.stack(columns, dim=1)


def _rejection_kernel(
    sampled,  # [num_reqs, num_speculative_steps + 1]
    sampled_stride,
    rejected_steps,  # [num_reqs]
    target_rejected_logsumexp,  # [num_reqs]
    draft_rejected_logsumexp,  # [num_reqs]
    target_logits,  # [num_logits, vocab_size]
    target_logits_stride,
    target_local_argmax,  # [num_logits, num_blocks]
    target_local_argmax_stride,
    target_local_max,  # [num_logits, num_blocks]
    target_local_max_stride,
    target_local_sumexp,  # [num_logits, num_blocks]
    target_local_sumexp_stride,
    draft_sampled,  # [num_logits], each row's input token
    draft_logits,  # [max_num_reqs, num_speculative_steps, vocab_size]
    draft_logits_stride_0,
    draft_logits_stride_1,
    draft_local_max,  # [num_logits, num_blocks]
    draft_local_max_stride,
    draft_local_sumexp,  # [num_logits, num_blocks]
    draft_local_sumexp_stride,
    cu_num_logits,  # [num_reqs + 1]
    idx_mapping,  # [num_reqs]
    temp,  # [max_num_reqs]
    seed,  # [max_num_reqs]
    pos,  # [num_logits]
    synthetic_conditional_rates,  # [num_speculative_steps] if SYNTHETIC_MODE
    cumulative_log_p,
    local_residual_mass,
    local_residual_mass_stride,
    vocab_num_blocks,
    PADDED_VOCAB_NUM_BLOCKS,
    HAS_DRAFT_LOGITS,
    SYNTHETIC_MODE,
    USE_BLOCK_VERIFICATION,
    num_warps=1,
):
    """Walk each chain of drafts up to its first rejection."""
    if USE_BLOCK_VERIFICATION:
        raise NotImplementedError("block verification is not supported on CPU")
    # Only random rows read logits, each at the one token that is its draft.
    target_logit = draft_logit = np.zeros(0, dtype=np.float32)
    temperature = temp.numpy()[idx_mapping.numpy()]
    if temperature.any():
        num_logits = np.diff(cu_num_logits.numpy())
        row = np.arange(len(draft_sampled) - 1)
        token = draft_sampled.numpy()[1:].clip(min=0)
        target_logit = target_logits[row, token].float().numpy()
        if HAS_DRAFT_LOGITS:
            step = row - np.repeat(cu_num_logits.numpy()[:-1], num_logits)[:-1]
            step = step.clip(max=draft_logits.shape[1] - 1)
            state = np.repeat(idx_mapping.numpy(), num_logits)[:-1]
            draft_logit = draft_logits[state, step, token].float().numpy()
    _walk_chains(
        sampled,
        rejected_steps,
        target_rejected_logsumexp,
        draft_rejected_logsumexp,
        target_logit,
        target_local_argmax,
        target_local_max,
        target_local_sumexp,
        draft_sampled,
        draft_logit,
        draft_local_max,
        draft_local_sumexp,
        cu_num_logits,
        idx_mapping,
        temp,
        seed,
        pos,
        synthetic_conditional_rates,
        HAS_DRAFT_LOGITS,
    )


@compiled_kernel
def _walk_chains(
    sampled,
    rejected_steps,
    target_rejected_logsumexp,
    draft_rejected_logsumexp,
    target_logit,  # [num_logits - 1], at the row's draft; empty if all is greedy
    target_local_argmax,
    target_local_max,
    target_local_sumexp,
    draft_sampled,
    draft_logit,  # as target_logit; empty without draft logits
    draft_local_max,
    draft_local_sumexp,
    cu_num_logits,
    idx_mapping,
    temp,
    seed,
    pos,
    synthetic_conditional_rates,
    has_draft_logits,
):
    for req in range(len(idx_mapping)):
        state = idx_mapping[req]
        temperature = temp[state]
        start = cu_num_logits[req]
        num_accepted = 0
        target_lse = draft_lse = np.float32(0)
        for step in range(cu_num_logits[req + 1] - start - 1):
            row = start + step
            draft = draft_sampled[row + 1]
            if temperature == 0:
                target = target_local_argmax[row, argmax(target_local_max[row])]
                is_accepted = target == draft
            elif draft < 0:
                break
            else:
                target = np.int64(draft)
                target_lse = _logsumexp(target_local_max[row], target_local_sumexp[row])
                draft_logprob = np.float32(0)
                if has_draft_logits:
                    draft_lse = _logsumexp(draft_local_max[row], draft_local_sumexp[row])
                    draft_logprob = draft_logit[row] / temperature - draft_lse
                # Accept with probability min(1, target probability / draft probability).
                uniform = philox_uniform(seed[state], pos[row])
                is_accepted = target_logit[row] - target_lse > np.log(uniform) + draft_logprob
            if synthetic_conditional_rates is not None:
                uniform = philox_uniform(seed[state], pos[row])
                is_accepted = uniform < synthetic_conditional_rates[step]
            is_accepted = is_accepted and draft >= 0
            sampled[req, step] = draft if is_accepted else target
            if not is_accepted:
                break
            num_accepted += 1
        rejected_steps[req] = num_accepted
        target_rejected_logsumexp[req] = target_lse
        draft_rejected_logsumexp[req] = draft_lse


@compiled
def _logsumexp(block_max, block_sumexp):
    maximum = block_max.max()
    total = np.float32(0)
    for i in range(len(block_max)):
        total += block_sumexp[i] * np.exp(block_max[i] - maximum)
    return maximum + np.log(total)
