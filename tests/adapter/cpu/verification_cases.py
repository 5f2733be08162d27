"""Launches of the kernels that verify a chain of drafts."""

from typing import Any

import numpy as np
import torch

from tests.adapter.cpu.launches import Batch, BuildLaunch, Launch, integers, normals, poison

_VOCAB = Batch.vocab_size
_BLOCK = 1024
_NUM_BLOCKS = 2
_FLOAT32_ROUNDING = 1e-5


def flatten_sampled(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    sampled = integers(rng, 0, _VOCAB, (batch.num_reqs, batch.num_steps + 1), torch.int64)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "flat_sampled": poison(batch.total_num_logits, dtype=torch.int64),
            "sampled": sampled,
            "sampled_stride": sampled.stride(0),
            "num_sampled": torch.from_numpy(rng.integers(0, batch.num_logits + 1)).int(),
            "cu_num_logits": batch.cu_num_logits,
        },
    )


def gather_draft_sampled(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    idx_mapping, local_pos = batch.expanded()
    rows = batch.total_num_logits
    return Launch(
        grid=(-(-rows // 8),),
        arguments={
            "draft_sampled": poison(rows),
            "pos": poison(rows, dtype=torch.int64),
            "input_ids": integers(rng, 0, _VOCAB, batch.num_tokens),
            "positions": integers(rng, 0, 40, batch.num_tokens, torch.int64),
            "logits_indices": integers(rng, 0, batch.num_tokens, rows, torch.int64),
            "expanded_idx_mapping": idx_mapping,
            "expanded_local_pos": local_pos,
            "prefill_len": batch.state("prefill_len"),
            "num_logits": rows,
            "BLOCK_SIZE": 8,
        },
    )


class Verification:
    """A batch being verified: drafts drawn so that many are accepted, some are absent."""

    def __init__(self, rng: np.random.Generator, has_draft_logits: bool, dtype: torch.dtype) -> None:
        self.batch = batch = Batch(rng)
        self.idx_mapping, self.local_pos = batch.expanded()
        rows = batch.total_num_logits
        self.target_logits = normals(rng, rows, _VOCAB, dtype=dtype)
        self.temp = torch.from_numpy(rng.choice([0.0, 0.8, 1.0], batch.max_num_reqs)).float()
        self.seed = integers(rng, -(2**62), 2**62, batch.max_num_reqs, torch.int64)
        self.pos = integers(rng, 0, 10**6, rows, torch.int64)
        self.draft_logits = None
        if has_draft_logits:
            shape = (batch.max_num_reqs, batch.num_steps, _VOCAB)
            self.draft_logits = normals(rng, *shape, dtype=dtype)
            for row in range(rows):
                if self.local_pos[row] < batch.num_steps:
                    draft = self.draft_logits[self.idx_mapping[row], self.local_pos[row]]
                    draft.copy_(self.target_logits[row] + 0.5 * normals(rng, _VOCAB, dtype=dtype))
        best = self.target_logits.argmax(dim=1).roll(1)
        accept = torch.from_numpy(rng.random(rows) < 0.7)
        self.draft_sampled = torch.where(accept, best, integers(rng, 0, _VOCAB, rows)).int()
        self.draft_sampled[torch.from_numpy(rng.random(rows) < 0.15)] = -1
        # The first request is greedy, and lacks the second of its two drafts.
        self.temp[batch.idx_np[0]] = 0.0
        self.draft_sampled[2] = -1

        self.temperature_of_row = self.temp[self.idx_mapping]
        blocks = self.target_logits.float().split(_BLOCK, dim=1)
        self.target_max, self.target_argmax = _block_max(blocks)
        self.target_sumexp = _block_sumexp(blocks)
        self.draft_max = self.draft_sumexp = poison(rows, _NUM_BLOCKS, dtype=torch.float32)
        if self.draft_logits is not None:
            step = self.local_pos.clamp(max=batch.num_steps - 1)
            drafted = self.draft_logits[self.idx_mapping, step].float()
            blocks = (drafted / self.temperature_of_row[:, None]).split(_BLOCK, dim=1)
            self.draft_max, _ = _block_max(blocks)
            self.draft_sumexp = _block_sumexp(blocks)

    def draft_logits_arguments(self) -> dict[str, Any]:
        strides = (0, 0) if self.draft_logits is None else self.draft_logits.stride()
        return {
            "draft_logits": self.draft_logits,
            "draft_logits_stride_0": strides[0],
            "draft_logits_stride_1": strides[1],
        }


def _block_max(blocks: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    found = [block.max(dim=1) for block in blocks]
    columns = [value.indices + i * _BLOCK for i, value in enumerate(found)]
    return torch.stack([value.values for value in found], dim=1), torch.stack(columns, dim=1)


def _block_sumexp(blocks: tuple[torch.Tensor, ...]) -> torch.Tensor:
    sums = [(block - block.amax(1, keepdim=True)).exp().sum(1) for block in blocks]
    return torch.stack(sums, dim=1)


def local_logits_stats(
    rng: np.random.Generator, *, has_draft_logits: bool = False, dtype: torch.dtype = torch.float32
) -> Launch:
    v = Verification(rng, has_draft_logits, dtype)
    rows = v.batch.total_num_logits
    v.target_logits[:, :_BLOCK] = torch.where(
        torch.from_numpy(rng.random(rows) < 0.3)[:, None], -torch.inf, v.target_logits[:, :_BLOCK]
    )
    outputs = {
        "target_local_argmax": poison(rows, _NUM_BLOCKS, dtype=torch.int64),
        "target_local_max": poison(rows, _NUM_BLOCKS, dtype=torch.float32),
        "target_local_sumexp": poison(rows, _NUM_BLOCKS, dtype=torch.float32),
        "draft_local_max": poison(rows, _NUM_BLOCKS, dtype=torch.float32),
        "draft_local_sumexp": poison(rows, _NUM_BLOCKS, dtype=torch.float32),
    }
    arguments: dict[str, Any] = {}
    for name, output in outputs.items():
        arguments |= {name: output, f"{name}_stride": output.stride(0)}
    # The last row of a request, its bonus, is not looked at; of a random row, the argmax is not.
    is_bonus = (torch.cat((v.local_pos[1:], v.local_pos.new_zeros(1))) == 0)[:, None]
    return Launch(
        grid=(rows, _NUM_BLOCKS),
        arguments={
            **arguments,
            "target_logits": v.target_logits,
            "target_logits_stride": _VOCAB,
            **v.draft_logits_arguments(),
            "expanded_idx_mapping": v.idx_mapping,
            "expanded_local_pos": v.local_pos,
            "temp": v.temp,
            "vocab_size": _VOCAB,
            "num_speculative_steps": v.batch.num_steps,
            "BLOCK_SIZE": _BLOCK,
            "HAS_DRAFT_LOGITS": has_draft_logits,
        },
        unspecified={
            "target_local_argmax": is_bonus | (v.temperature_of_row != 0)[:, None],
            "target_local_max": is_bonus,
            "target_local_sumexp": is_bonus,
            "draft_local_max": is_bonus,
            "draft_local_sumexp": is_bonus,
        },
        tolerance=_FLOAT32_ROUNDING,
    )


def local_logits_stats_with_draft_logits(rng: np.random.Generator) -> Launch:
    return local_logits_stats(rng, has_draft_logits=True)


def local_logits_stats_of_bfloat16(rng: np.random.Generator) -> Launch:
    return local_logits_stats(rng, has_draft_logits=True, dtype=torch.bfloat16)


def rejection(
    rng: np.random.Generator,
    *,
    has_draft_logits: bool = False,
    synthetic: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Launch:
    v = Verification(rng, has_draft_logits, dtype)
    batch = v.batch
    width = batch.num_steps + 1
    sampled = poison(batch.num_reqs, width, dtype=torch.int64)
    rates = torch.linspace(0.95, 0.6, batch.num_steps) if synthetic else None
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "sampled": sampled,
            "sampled_stride": width,
            "rejected_steps": poison(batch.num_reqs),
            "target_rejected_logsumexp": poison(batch.num_reqs, dtype=torch.float32),
            "draft_rejected_logsumexp": poison(batch.num_reqs, dtype=torch.float32),
            "target_logits": v.target_logits,
            "target_logits_stride": _VOCAB,
            "target_local_argmax": v.target_argmax,
            "target_local_argmax_stride": _NUM_BLOCKS,
            "target_local_max": v.target_max,
            "target_local_max_stride": _NUM_BLOCKS,
            "target_local_sumexp": v.target_sumexp,
            "target_local_sumexp_stride": _NUM_BLOCKS,
            "draft_sampled": v.draft_sampled,
            **v.draft_logits_arguments(),
            "draft_local_max": v.draft_max,
            "draft_local_max_stride": _NUM_BLOCKS,
            "draft_local_sumexp": v.draft_sumexp,
            "draft_local_sumexp_stride": _NUM_BLOCKS,
            "cu_num_logits": batch.cu_num_logits,
            "idx_mapping": batch.idx_mapping,
            "temp": v.temp,
            "seed": v.seed,
            "pos": v.pos,
            "synthetic_conditional_rates": rates,
            "cumulative_log_p": None,
            "local_residual_mass": None,
            "local_residual_mass_stride": 0,
            "vocab_num_blocks": _NUM_BLOCKS,
            "PADDED_VOCAB_NUM_BLOCKS": 2,
            "HAS_DRAFT_LOGITS": has_draft_logits,
            "SYNTHETIC_MODE": synthetic,
            "USE_BLOCK_VERIFICATION": False,
        },
        tolerance=_FLOAT32_ROUNDING,
    )


def rejection_with_draft_logits(rng: np.random.Generator) -> Launch:
    return rejection(rng, has_draft_logits=True)


def rejection_of_bfloat16(rng: np.random.Generator) -> Launch:
    return rejection(rng, has_draft_logits=True, dtype=torch.bfloat16)


def rejection_at_synthetic_rates(rng: np.random.Generator) -> Launch:
    return rejection(rng, synthetic=True)


def resample(
    rng: np.random.Generator,
    *,
    has_draft_logits: bool = False,
    dtype: torch.dtype = torch.float32,
    float64: bool = False,
) -> Launch:
    v = Verification(rng, has_draft_logits, dtype)
    batch = v.batch
    num_accepted = torch.from_numpy(rng.integers(0, batch.num_drafts + 1))
    row = batch.cu_num_logits[:-1] + num_accepted
    target_lse = v.target_logits.float().logsumexp(dim=1)[row]
    draft_lse = torch.zeros(batch.num_reqs)
    if v.draft_logits is not None:
        step = num_accepted.clamp(max=batch.num_steps - 1)
        drafted = v.draft_logits[batch.idx_mapping, step].float()
        draft_lse = (drafted / v.temp[batch.idx_mapping, None]).logsumexp(dim=1)
    local_argmax = poison(batch.num_reqs, _NUM_BLOCKS, dtype=torch.int64)
    max_dtype = torch.float64 if float64 else torch.float32
    # log1p(-ratio) loses digits where target and draft nearly agree.
    tolerance = 1e-3 if has_draft_logits else _FLOAT32_ROUNDING
    return Launch(
        grid=(batch.num_reqs, _NUM_BLOCKS),
        arguments={
            "resampled_local_argmax": local_argmax,
            "resampled_local_argmax_stride": _NUM_BLOCKS,
            "resampled_local_max": poison(batch.num_reqs, _NUM_BLOCKS, dtype=max_dtype),
            "resampled_local_max_stride": _NUM_BLOCKS,
            "target_logits": v.target_logits,
            "target_logits_stride": _VOCAB,
            "target_rejected_logsumexp": target_lse,
            **v.draft_logits_arguments(),
            "draft_rejected_logsumexp": draft_lse,
            "rejected_step": num_accepted.int(),
            "cu_num_logits": batch.cu_num_logits,
            "expanded_idx_mapping": v.idx_mapping,
            "draft_sampled": v.draft_sampled,
            "temp": v.temp,
            "seed": v.seed,
            "pos": v.pos,
            "cumulative_log_p": None,
            "contexts": None,
            "contexts_stride": 0,
            "watermarking": None,
            "watermarking_skip_mask": None,
            "watermark_key_0": 0,
            "watermark_key_1": 0,
            "vocab_size": _VOCAB,
            "BLOCK_SIZE": _BLOCK,
            "HAS_DRAFT_LOGITS": has_draft_logits,
            "USE_FP64": float64,
            "USE_BLOCK_VERIFICATION": False,
            "CONTEXT_WIDTH": 1,
            "WATERMARK": False,
            "DEDUPLICATE_CONTEXTS": False,
        },
        tolerance=tolerance,
    )


def resample_with_draft_logits(rng: np.random.Generator) -> Launch:
    return resample(rng, has_draft_logits=True)


def resample_from_bfloat16_in_float64(rng: np.random.Generator) -> Launch:
    return resample(rng, dtype=torch.bfloat16, float64=True)


def insert_resampled(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    num_blocks = 5
    local_max = normals(rng, batch.num_reqs, num_blocks)
    local_max[0, 0] = torch.nan
    sampled = poison(batch.num_reqs, batch.num_steps + 1, dtype=torch.int64)
    temp = torch.from_numpy(rng.choice([0.0, 0.8], batch.max_num_reqs)).float()
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "sampled": sampled,
            "sampled_stride": sampled.stride(0),
            "num_sampled": torch.from_numpy(rng.integers(0, batch.num_drafts + 1)).int(),
            "resampled_local_argmax": integers(
                rng, 0, _VOCAB, (batch.num_reqs, num_blocks), torch.int64
            ),
            "resampled_local_argmax_stride": num_blocks,
            "resampled_local_max": local_max,
            "resampled_local_max_stride": num_blocks,
            "resample_num_blocks": num_blocks,
            "cu_num_logits": batch.cu_num_logits,
            "expanded_idx_mapping": batch.expanded()[0],
            "temp": temp,
            "PADDED_RESAMPLE_NUM_BLOCKS": 8,
        },
    )


_REJECTION = "spec_decode.rejection_sampler"

CASES: dict[str, tuple[BuildLaunch, ...]] = {
    f"{_REJECTION}._flatten_sampled_kernel": (flatten_sampled,),
    f"{_REJECTION}._gather_draft_sampled_kernel": (gather_draft_sampled,),
    f"{_REJECTION}_utils._compute_local_logits_stats_kernel": (
        local_logits_stats,
        local_logits_stats_with_draft_logits,
        local_logits_stats_of_bfloat16,
    ),
    f"{_REJECTION}_utils._rejection_kernel": (
        rejection,
        rejection_with_draft_logits,
        rejection_of_bfloat16,
        rejection_at_synthetic_rates,
    ),
    f"{_REJECTION}_utils._resample_kernel": (
        resample,
        resample_with_draft_logits,
        resample_from_bfloat16_in_float64,
    ),
    f"{_REJECTION}_utils._insert_resampled_kernel": (insert_resampled,),
}
