"""CPU versions of the kernels that turn logits into tokens.

They mirror `gumbel`, `min_p`, `logprob` and `prompt_logprob` in
`vllm.v1.worker.gpu.sample`.
"""

import numpy as np
import torch

from vllm_smart.kernels.gumbel.cpu import gumbel_noise
from vllm_smart.mrv2_cpu.launch import on_numpy, taking
from vllm_smart.mrv2_cpu.noise import DRAFT_POSITION_OFFSET


def _temperature_kernel(
    logits,  # [num_tokens, vocab_size], in and out
    logits_stride,
    expanded_idx_mapping,  # [num_tokens]
    temperature,  # [max_num_reqs]
    vocab_size,
    BLOCK_SIZE,
):
    """Divide logits by their request's temperature; greedy rows stay as they are."""
    temperature = temperature[expanded_idx_mapping]
    logits /= torch.where(temperature == 0, 1.0, temperature)[:, None]


def gumbel_sample(
    local_argmax,  # [num_tokens, num_blocks]
    local_argmax_stride,
    local_max,  # [num_tokens, num_blocks]
    local_max_stride,
    logits_cache,  # [max_num_reqs, num_cols, vocab_size] or None
    logits_cache_stride_0,
    logits_cache_stride_1,
    logits_cache_col,  # scalar, or [num_tokens] if PER_TOKEN_COL
    logits_cache_source,  # [num_tokens, vocab_size]
    logits_cache_source_stride,
    logits,  # [num_tokens, vocab_size]
    logits_stride,
    expanded_idx_mapping,  # [num_tokens], negative: padding
    seeds,  # [max_num_reqs]
    pos,  # [num_tokens]
    temp,  # [max_num_reqs]
    vocab_size,
    BLOCK_SIZE,
    IS_DRAFTING,
    APPLY_TEMPERATURE,
    USE_FP64,
    PER_TOKEN_COL,
    step_in_seed=False,
):
    """Argmax per vocabulary block of logits plus (seed, position)-keyed Gumbel noise.

    Args:
        step_in_seed: whether rows with logits to cache, which draft, have their column in their seed.
    """
    idx_mapping = expanded_idx_mapping.numpy()
    row_seeds = seeds.numpy()[idx_mapping]
    if logits_cache is not None:
        rows = np.flatnonzero(idx_mapping >= 0)
        col = logits_cache_col[rows] if PER_TOKEN_COL else logits_cache_col
        logits_cache[idx_mapping[rows], col, :vocab_size] = logits_cache_source[rows]
        if step_in_seed:
            row_seeds[rows] ^= col.numpy().astype(np.int64) << 32
    scores = gumbel_scores(
        logits,
        np.where(idx_mapping >= 0, temp.numpy()[idx_mapping], 0.0),
        row_seeds,
        pos.numpy() + DRAFT_POSITION_OFFSET if IS_DRAFTING else pos.numpy(),
        apply_temperature=APPLY_TEMPERATURE,
        float64=USE_FP64,
    )
    block_argmax(scores, BLOCK_SIZE, local_max.numpy(), local_argmax.numpy())


@taking(gumbel_sample, step_in_seed=())
def _gumbel_sample_kernel(*args, **constexprs):
    gumbel_sample(*args, **constexprs)


def gumbel_scores(
    logits: torch.Tensor,
    temperature: np.ndarray,
    seeds: np.ndarray,
    positions: np.ndarray,
    *,
    apply_temperature: bool,
    float64: bool,
) -> np.ndarray:
    """Logits whose argmax is a sample; greedy rows get no noise.

    Args:
        logits: [num_tokens, vocab_size].
        temperature: [num_tokens] float32, 0 for greedy.
        seeds: [num_tokens] int64.
        positions: [num_tokens].
        apply_temperature: whether logits still have to be divided by it.
        float64: precision of the noise.

    Returns:
        [num_tokens, vocab_size] scores; a view of `logits` where every row is greedy.
    """
    rows = np.flatnonzero(temperature)
    if not len(rows):
        return logits.float().numpy()
    scores = logits.to(torch.float64 if float64 else torch.float32, copy=True)
    random_logits = logits[rows].float()
    if apply_temperature:
        random_logits /= torch.from_numpy(temperature[rows, None])
    noise = gumbel_noise(seeds[rows], positions[rows], logits.shape[1], float64)
    scores[rows] = noise.add_(random_logits)
    return scores.numpy()


def block_argmax(
    scores: np.ndarray, block_size: int, block_max: np.ndarray, block_idx: np.ndarray
) -> None:
    """Write the maximum of each block of columns, and its column, to the outputs.

    numpy's argmax is vectorised; torch's is not, and takes over ten times as long.

    Args:
        scores: [num_rows, num_columns].
        block_size: columns per block; the last block may be shorter.
        block_max: [num_rows, num_blocks], out.
        block_idx: [num_rows, num_blocks] int64, out.
    """
    num_rows, num_columns = scores.shape
    num_full = num_columns // block_size
    edge = num_full * block_size
    blocks = scores[:, :edge].reshape(num_rows, num_full, block_size)
    np.add(blocks.argmax(axis=2), np.arange(0, edge, block_size), out=block_idx[:, :num_full])
    if edge < num_columns:
        np.add(scores[:, edge:].argmax(axis=1), edge, out=block_idx[:, num_full])
    block_max[:] = scores[np.arange(num_rows)[:, None], block_idx]


def _min_p_kernel(
    logits,  # [num_tokens, vocab_size], in and out
    logits_stride,
    expanded_idx_mapping,  # [num_tokens]
    min_p,  # [max_num_reqs]
    vocab_size,
    BLOCK_SIZE,
):
    """Drop tokens less probable than `min_p` times the most probable one."""
    threshold = logits.amax(dim=-1).float() + min_p[expanded_idx_mapping].log()
    logits.masked_fill_(logits < threshold[:, None], -torch.inf)


def _topk_log_softmax_kernel(
    output,  # [num_tokens, topk]
    logits,  # [num_tokens, vocab_size]
    logits_stride,
    topk_ids,  # [num_tokens, topk]
    topk_ids_stride,
    topk,
    vocab_size,
    BLOCK_SIZE,
    TOPK_BLOCK_SIZE,
):
    """Log probabilities of the given tokens."""
    log_normaliser = logits.float().logsumexp(dim=-1, keepdim=True)
    torch.sub(logits.gather(1, topk_ids).float(), log_normaliser, out=output)


def _ranks_kernel(
    output,  # [num_tokens]
    logits,  # [num_tokens, vocab_size]
    logits_stride,
    token_ids,  # [num_tokens]
    vocab_size,
    BLOCK_SIZE,
):
    """Rank of each row's token: how many logits are at least as large."""
    chosen = logits.gather(1, token_ids.long()[:, None])
    torch.sum(logits >= chosen, dim=-1, out=output)


@on_numpy
def _fill_logprob_token_ids_kernel(
    out_token_ids,  # [num_tokens, 1 + num_cols]
    out_token_ids_stride,
    out_valid_mask,  # [num_tokens, 1 + num_cols]
    out_valid_mask_stride,
    sampled_token_ids,  # [num_tokens]
    topk_indices,  # [num_tokens, NUM_TOPK], unused if NUM_TOPK == 0
    topk_indices_stride,
    expanded_idx_mapping,  # [num_tokens]
    num_per_req_token_ids,  # [max_num_reqs]
    per_req_token_ids,  # [max_num_reqs, max_logprob_token_ids]
    per_req_token_ids_stride,
    NUM_TOPK,
    PADDED_COLS,
):
    """The sampled token, then the request's own list of tokens or else the top k."""
    out_token_ids[:, 0] = sampled_token_ids
    out_valid_mask[:, 0] = True
    num_custom = num_per_req_token_ids[expanded_idx_mapping]
    for row, count in enumerate(num_custom):
        if count:
            others = per_req_token_ids[expanded_idx_mapping[row], :count]
        elif NUM_TOPK:
            others = topk_indices[row, :NUM_TOPK]
        else:
            continue
        out_token_ids[row, 1 : 1 + len(others)] = others
        out_valid_mask[row, 1 : 1 + len(others)] = True


@on_numpy
def _prompt_logprobs_token_ids_kernel(
    prompt_logprobs_token_ids,  # [num_tokens]
    query_start_loc,  # [num_reqs + 1]
    idx_mapping,  # [num_reqs]
    num_computed_tokens,  # [max_num_reqs]
    all_token_ids,  # [max_num_reqs, max_model_len]
    all_token_ids_stride,
    BLOCK_SIZE,
):
    """The token after each scheduled one."""
    for row, req in enumerate(idx_mapping):
        start, end = query_start_loc[row : row + 2]
        first = num_computed_tokens[req] + 1
        # A prompt as long as the model's context has no token after its last.
        following = all_token_ids[req, first : first + end - start]
        prompt_logprobs_token_ids[start : start + len(following)] = following
