"""Launches of the kernels that edit logits before sampling."""

from typing import Any

import numpy as np
import torch

from tests.adapter.cpu.launches import Batch, BuildLaunch, Launch, integers, normals

_VOCAB = Batch.vocab_size
_FLOAT32_ROUNDING = 1e-5


def _chain_arguments(batch: Batch, rng: np.random.Generator) -> dict[str, Any]:
    """What every logits processor knows of a batch with drafts."""
    return {
        "logits": normals(rng, batch.total_num_logits, _VOCAB),
        "logits_stride": _VOCAB,
        "expanded_idx_mapping": batch.expanded()[0],
    }


def penalties(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    words = -(-_VOCAB // 32)
    limits = np.iinfo(np.int32)
    counts = integers(rng, 0, 30, (batch.max_num_reqs, _VOCAB)).sub_(26).clamp_(min=0)

    def penalty(*values: float) -> torch.Tensor:
        return torch.from_numpy(rng.choice(values, batch.max_num_reqs)).float()

    return Launch(
        grid=(batch.total_num_logits, 2),
        arguments={
            **_chain_arguments(batch, rng),
            "token_ids": integers(rng, 0, 40, batch.total_num_logits),
            "expanded_local_pos": batch.expanded()[1],
            "repetition_penalty": penalty(1.0, 1.3),
            "frequency_penalty": penalty(0.0, 0.5),
            "presence_penalty": penalty(0.0, -0.4),
            "prompt_bin_mask": integers(rng, limits.min, limits.max, (batch.max_num_reqs, words)),
            "prompt_bin_mask_stride": words,
            "output_bin_counts": counts,
            "output_bin_counts_stride": _VOCAB,
            "vocab_size": _VOCAB,
            "BLOCK_SIZE": 1024,
        },
        tolerance=_FLOAT32_ROUNDING,
    )


def bincount(rng: np.random.Generator) -> Launch:
    batch = Batch(rng, num_reqs=4)
    words = -(-_VOCAB // 32)
    tokens = integers(rng, 0, _VOCAB, (batch.max_num_reqs, batch.max_model_len))
    prefill_len = rng.integers(2, batch.max_model_len, batch.max_num_reqs)
    return Launch(
        grid=(batch.num_reqs, 4),
        arguments={
            "expanded_idx_mapping": batch.idx_mapping,
            "all_token_ids": tokens,
            "all_token_ids_stride": tokens.stride(0),
            "prompt_len": torch.from_numpy(rng.integers(1, prefill_len + 1)).int(),
            "prefill_len": torch.from_numpy(prefill_len).int(),
            "prompt_bin_mask": torch.zeros(batch.max_num_reqs, words, dtype=torch.int32),
            "prompt_bin_mask_stride": words,
            "output_bin_counts": torch.zeros(batch.max_num_reqs, _VOCAB, dtype=torch.int32),
            "output_bin_counts_stride": _VOCAB,
            "BLOCK_SIZE": 32,
        },
    )


def bad_words(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    # Three distinct tokens, so that many prefixes match, some across committed and drafted.
    tokens = integers(rng, 0, 3, (batch.max_num_reqs, batch.max_model_len))
    words = integers(rng, 0, 3, (batch.max_num_reqs, 24))
    offsets = torch.from_numpy(np.cumsum(rng.integers(1, 5, (batch.max_num_reqs, 6)), axis=1))
    offsets -= offsets[:, :1].clone()
    prompt_len = rng.integers(1, 40, batch.max_num_reqs)
    return Launch(
        grid=(batch.total_num_logits, 5),
        arguments={
            **_chain_arguments(batch, rng),
            "bad_word_token_ids": words,
            "bad_word_token_ids_stride": words.stride(0),
            "bad_word_offsets": offsets.int(),
            "bad_word_offsets_stride": offsets.stride(0),
            "num_bad_words": integers(rng, 0, 6, batch.max_num_reqs),
            "all_token_ids": tokens,
            "all_token_ids_stride": tokens.stride(0),
            "prompt_len": torch.from_numpy(prompt_len).int(),
            "total_len": torch.from_numpy(prompt_len + rng.integers(0, 9, len(prompt_len))).int(),
            "input_ids": integers(rng, 0, 3, batch.total_num_logits),
            "expanded_local_pos": batch.expanded()[1],
        },
    )


def logit_bias(rng: np.random.Generator, check_all_masked_rows: bool = False) -> Launch:
    batch = Batch(rng)
    reqs, width = batch.max_num_reqs, 6

    def distinct_tokens() -> torch.Tensor:
        return torch.stack([torch.from_numpy(rng.permutation(20)[:width]) for _ in range(reqs)]).int()

    # Where the stop tokens are the allowed ones, masking them masks all that is left.
    allowed, stop = distinct_tokens(), distinct_tokens()
    stop[::2] = allowed[::2]
    chain = _chain_arguments(batch, rng)
    return Launch(
        grid=(batch.total_num_logits,),
        arguments={
            "logits": chain["logits"],
            "logits_stride": _VOCAB,
            "vocab_size": _VOCAB,
            "expanded_idx_mapping": chain["expanded_idx_mapping"],
            "num_allowed_token_ids": integers(rng, 0, width, reqs),
            "allowed_token_ids": allowed,
            "allowed_token_ids_stride": width,
            "num_logit_bias": integers(rng, 0, width, reqs),
            "bias_token_ids": distinct_tokens(),
            "bias_token_ids_stride": width,
            "bias": normals(rng, reqs, width),
            "bias_stride": width,
            "pos": integers(rng, 0, 60, batch.total_num_logits, torch.int64),
            "min_lens": integers(rng, 20, 160, reqs),
            "num_stop_token_ids": integers(rng, 0, width, reqs),
            "restore_when_all_masked": torch.from_numpy(rng.random(reqs) < 0.5),
            "stop_token_ids": stop,
            "stop_token_ids_stride": width,
            "BLOCK_SIZE": 8,
            "LOGITS_BLOCK_SIZE": 1024,
            "CHECK_ALL_MASKED_ROWS": check_all_masked_rows,
        },
    )


def logit_bias_with_restored_stop_tokens(rng: np.random.Generator) -> Launch:
    return logit_bias(rng, check_all_masked_rows=True)


def apply_grammar_bitmask(rng: np.random.Generator, dtype: torch.dtype = torch.float32) -> Launch:
    batch = Batch(rng)
    words, stride = -(-_VOCAB // 32), batch.num_steps + 1
    limits = np.iinfo(np.int32)
    # Some positions lie past their request's rows, and must be skipped.
    indices = torch.from_numpy(rng.permutation(batch.num_reqs * stride)[:9]).int()
    logits = normals(rng, batch.total_num_logits, _VOCAB, dtype=dtype)
    return Launch(
        grid=(len(indices), 2),
        arguments={
            "logits": logits,
            "logits_stride": _VOCAB,
            "logits_indices": indices,
            "cu_num_logits": batch.cu_num_logits,
            "bitmask": integers(rng, limits.min, limits.max, (len(indices), words)),
            "bitmask_stride": words,
            "vocab_size": _VOCAB,
            "MASK_STRIDE": stride,
            "BLOCK_SIZE": 1024,
        },
    )


def apply_grammar_bitmask_to_bfloat16(rng: np.random.Generator) -> Launch:
    return apply_grammar_bitmask(rng, torch.bfloat16)


def apply_grammar_bitmask_to_float16(rng: np.random.Generator) -> Launch:
    return apply_grammar_bitmask(rng, torch.float16)


def _thinking_arguments(batch: Batch, rng: np.random.Generator) -> dict[str, Any]:
    # Two distinct tokens, so that markers are everywhere.
    tokens = integers(rng, 0, 2, (batch.max_num_reqs, batch.max_model_len))
    return {
        "thinking_token_budget": integers(rng, -1, 12, batch.max_num_reqs),
        "all_token_ids": tokens,
        "all_token_ids_stride": tokens.stride(0),
        "total_len": integers(rng, 1, 40, batch.max_num_reqs),
    }


def update_committed_marker_cache(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    # 0 is a cold scan; some positions lie past the end, as after a preemption.
    scan_pos = integers(rng, 0, 45, batch.max_num_reqs)
    scan_pos[::3] = 0
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "req_ids": batch.idx_mapping,
            **_thinking_arguments(batch, rng),
            "cached_last_start": torch.full((batch.max_num_reqs,), -1, dtype=torch.int32),
            "cached_last_end": torch.full((batch.max_num_reqs,), -1, dtype=torch.int32),
            "cached_scan_pos": scan_pos,
            "reasoning_start_token_ids": torch.tensor([0, 1, 1], dtype=torch.int32),
            "natural_reasoning_end_token_ids": torch.tensor([1, 0], dtype=torch.int32),
            "START_LEN": 3,
            "NATURAL_END_LEN": 2,
            "MAX_LEN": 3,
            "BLOCK": 64,
        },
    )


def thinking_budget(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    chain = _chain_arguments(batch, rng)
    return Launch(
        grid=(batch.total_num_logits,),
        arguments={
            **chain,
            **_thinking_arguments(batch, rng),
            "input_ids": integers(rng, 0, 2, batch.total_num_logits),
            "expanded_local_pos": batch.expanded()[1],
            "cached_last_start": integers(rng, -1, 20, batch.max_num_reqs),
            "cached_last_end": integers(rng, -1, 10, batch.max_num_reqs),
            "reasoning_start_token_ids": torch.tensor([0, 1, 1], dtype=torch.int32),
            "natural_reasoning_end_token_ids": torch.tensor([1, 0, 1, 0], dtype=torch.int32),
            "reasoning_end_token_ids": torch.tensor([1, 0, 0], dtype=torch.int32),
            "START_LEN": 3,
            "NATURAL_END_LEN": 4,
            "END_LEN": 3,
        },
    )


CASES: dict[str, tuple[BuildLaunch, ...]] = {
    "sample.penalties._penalties_kernel": (penalties,),
    "sample.penalties._bincount_kernel": (bincount,),
    "sample.bad_words._bad_words_kernel": (bad_words,),
    "sample.logit_bias._bias_kernel": (logit_bias, logit_bias_with_restored_stop_tokens),
    "structured_outputs._apply_grammar_bitmask_kernel": (
        apply_grammar_bitmask,
        apply_grammar_bitmask_to_bfloat16,
        apply_grammar_bitmask_to_float16,
    ),
    "sample.thinking_budget._update_committed_marker_cache_kernel": (update_committed_marker_cache,),
    "sample.thinking_budget._thinking_budget_kernel": (thinking_budget,),
}
