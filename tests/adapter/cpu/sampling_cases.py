"""Launches of the kernels that turn logits into tokens and log probabilities."""

import numpy as np
import torch

from tests.adapter.cpu.launches import Batch, BuildLaunch, Launch, integers, normals, poison

_VOCAB = Batch.vocab_size
# exp, log and the order of a sum differ between numpy, torch and Triton in the last bits.
_FLOAT32_ROUNDING = 1e-5


def _temperatures(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.choice([0.0, 0.7, 1.0, 1.9], Batch.max_num_reqs)).float()


def _seeds(rng: np.random.Generator) -> torch.Tensor:
    limits = np.iinfo(np.int64)
    return torch.from_numpy(rng.integers(limits.min, limits.max, Batch.max_num_reqs))


def temperature(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    logits = normals(rng, batch.total_num_logits, _VOCAB)
    return Launch(
        grid=(batch.total_num_logits, 2),
        arguments={
            "logits": logits,
            "logits_stride": logits.stride(0),
            "expanded_idx_mapping": batch.expanded()[0],
            "temperature": _temperatures(rng),
            "vocab_size": _VOCAB,
            "BLOCK_SIZE": 1024,
        },
        tolerance=_FLOAT32_ROUNDING,
    )


def gumbel_sample(
    rng: np.random.Generator,
    *,
    dtype: torch.dtype = torch.float32,
    float64: bool = False,
    cached: bool = False,
    per_token_col: bool = False,
) -> Launch:
    batch = Batch(rng)
    rows = batch.total_num_logits
    idx_mapping = batch.expanded()[0].clone()
    idx_mapping[1] = -1
    logits = normals(rng, rows, _VOCAB, dtype=dtype)
    logits[:, rng.integers(0, _VOCAB, 300)] = -torch.inf
    cache = poison(batch.max_num_reqs, batch.num_steps, _VOCAB + 5, dtype=dtype)
    columns = integers(rng, 0, batch.num_steps, rows if per_token_col else ())
    if per_token_col:
        columns = batch.expanded()[1] % batch.num_steps
        idx_mapping = idx_mapping.clone()
        idx_mapping[batch.expanded()[1] >= batch.num_steps] = -1
    elif cached:
        # Two rows of one request must not race for one cache entry.
        idx_mapping = torch.from_numpy(rng.permutation(batch.max_num_reqs))[:rows]
        logits = logits[: len(idx_mapping)]
        rows = len(idx_mapping)
    source = normals(rng, rows, _VOCAB, dtype=dtype) if cached else None
    local_argmax = poison(rows, 2, dtype=torch.int64)
    local_max = poison(rows, 2, dtype=torch.float64 if float64 else torch.float32)
    return Launch(
        grid=(rows, 2),
        arguments={
            "local_argmax": local_argmax,
            "local_argmax_stride": 2,
            "local_max": local_max,
            "local_max_stride": 2,
            "logits_cache": cache if cached else None,
            "logits_cache_stride_0": cache.stride(0) if cached else 0,
            "logits_cache_stride_1": cache.stride(1) if cached else 0,
            "logits_cache_col": columns if cached else None,
            "logits_cache_source": source,
            "logits_cache_source_stride": _VOCAB if cached else 0,
            "logits": logits,
            "logits_stride": _VOCAB,
            "expanded_idx_mapping": idx_mapping,
            "seeds": _seeds(rng),
            "pos": integers(rng, 0, 10**6, rows, torch.int64),
            "temp": _temperatures(rng),
            "vocab_size": _VOCAB,
            "BLOCK_SIZE": 1024,
            "IS_DRAFTING": cached,
            "APPLY_TEMPERATURE": cached,
            "USE_FP64": float64,
            "PER_TOKEN_COL": per_token_col,
        },
        tolerance=_FLOAT32_ROUNDING,
    )


def gumbel_sample_from_bfloat16(rng: np.random.Generator) -> Launch:
    return gumbel_sample(rng, dtype=torch.bfloat16)


def gumbel_sample_in_float64(rng: np.random.Generator) -> Launch:
    return gumbel_sample(rng, float64=True)


def gumbel_sample_drafts(rng: np.random.Generator) -> Launch:
    return gumbel_sample(rng, cached=True)


def gumbel_sample_drafts_with_columns(rng: np.random.Generator) -> Launch:
    return gumbel_sample(rng, cached=True, per_token_col=True)


def min_p(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    logits = normals(rng, batch.total_num_logits, _VOCAB)
    return Launch(
        grid=(batch.total_num_logits,),
        arguments={
            "logits": logits,
            "logits_stride": _VOCAB,
            "expanded_idx_mapping": batch.expanded()[0],
            "min_p": torch.from_numpy(rng.choice([0.0, 0.01, 0.3], batch.max_num_reqs)).float(),
            "vocab_size": _VOCAB,
            "BLOCK_SIZE": 1024,
        },
    )


def topk_log_softmax(rng: np.random.Generator, dtype: torch.dtype = torch.float32) -> Launch:
    topk = 7
    logits = normals(rng, 5, _VOCAB, dtype=dtype)
    topk_ids = integers(rng, 0, _VOCAB, (5, topk), torch.int64)
    return Launch(
        grid=(5,),
        arguments={
            "output": poison(5, topk, dtype=torch.float32),
            "logits": logits,
            "logits_stride": _VOCAB,
            "topk_ids": topk_ids,
            "topk_ids_stride": topk,
            "topk": topk,
            "vocab_size": _VOCAB,
            "BLOCK_SIZE": 1024,
            "TOPK_BLOCK_SIZE": 4,
        },
        tolerance=_FLOAT32_ROUNDING,
    )


def topk_log_softmax_of_bfloat16(rng: np.random.Generator) -> Launch:
    return topk_log_softmax(rng, torch.bfloat16)


def ranks(rng: np.random.Generator) -> Launch:
    # Rounded, so that there are ties.
    logits = normals(rng, 5, _VOCAB).round()
    return Launch(
        grid=(5,),
        arguments={
            "output": poison(5, dtype=torch.int64),
            "logits": logits,
            "logits_stride": _VOCAB,
            "token_ids": integers(rng, 0, _VOCAB, 5, torch.int64),
            "vocab_size": _VOCAB,
            "BLOCK_SIZE": 1024,
        },
    )


def fill_logprob_token_ids(rng: np.random.Generator, num_topk: int = 3) -> Launch:
    batch = Batch(rng)
    rows, num_cols = batch.total_num_logits, 5
    token_ids = poison(rows, 1 + num_cols, dtype=torch.int64)
    valid = torch.zeros(rows, 1 + num_cols, dtype=torch.bool)
    custom = integers(rng, 0, _VOCAB, (batch.max_num_reqs, 8))
    topk = integers(rng, 0, _VOCAB, (rows, num_topk)) if num_topk else custom
    return Launch(
        grid=(rows,),
        arguments={
            "out_token_ids": token_ids,
            "out_token_ids_stride": token_ids.stride(0),
            "out_valid_mask": valid,
            "out_valid_mask_stride": valid.stride(0),
            "sampled_token_ids": integers(rng, 0, _VOCAB, rows, torch.int64),
            "topk_indices": topk,
            "topk_indices_stride": topk.stride(0),
            "expanded_idx_mapping": batch.expanded()[0],
            "num_per_req_token_ids": integers(rng, 0, num_cols + 1, batch.max_num_reqs),
            "per_req_token_ids": custom,
            "per_req_token_ids_stride": custom.stride(0),
            "NUM_TOPK": num_topk,
            "PADDED_COLS": 8,
        },
    )


def fill_logprob_token_ids_without_topk(rng: np.random.Generator) -> Launch:
    return fill_logprob_token_ids(rng, num_topk=0)


def prompt_logprobs_token_ids(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    tokens = integers(rng, 0, _VOCAB, (batch.max_num_reqs, batch.max_model_len))
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "prompt_logprobs_token_ids": poison(batch.num_tokens, dtype=torch.int64),
            "query_start_loc": batch.query_start_loc,
            "idx_mapping": batch.idx_mapping,
            "num_computed_tokens": batch.state("num_computed"),
            "all_token_ids": tokens,
            "all_token_ids_stride": tokens.stride(0),
            "BLOCK_SIZE": 16,
        },
    )


CASES: dict[str, tuple[BuildLaunch, ...]] = {
    "sample.gumbel._temperature_kernel": (temperature,),
    "sample.gumbel._gumbel_sample_kernel": (
        gumbel_sample,
        gumbel_sample_from_bfloat16,
        gumbel_sample_in_float64,
        gumbel_sample_drafts,
        gumbel_sample_drafts_with_columns,
    ),
    "sample.min_p._min_p_kernel": (min_p,),
    "sample.logprob._topk_log_softmax_kernel": (topk_log_softmax, topk_log_softmax_of_bfloat16),
    "sample.logprob._ranks_kernel": (ranks,),
    "sample.logprob._fill_logprob_token_ids_kernel": (
        fill_logprob_token_ids,
        fill_logprob_token_ids_without_topk,
    ),
    "sample.prompt_logprob._prompt_logprobs_token_ids_kernel": (prompt_logprobs_token_ids,),
}
