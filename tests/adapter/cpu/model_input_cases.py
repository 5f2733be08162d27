"""Launches of the kernels that prepare what a model takes beside its tokens, and of the NaN counter."""

import numpy as np
import torch

from tests.adapter.cpu.launches import ADDRESS, Batch, BuildLaunch, Launch, integers, normals, poison

_HIDDEN = 70


def rope_positions(rng: np.random.Generator, num_dims: int = 3) -> Launch:
    batch = Batch(rng)
    positions = poison(num_dims, batch.max_num_tokens + 1, dtype=torch.int64)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "positions": positions,
            "positions_stride": positions.stride(0),
            "prefill_positions": integers(
                rng, 0, 99, (batch.max_num_reqs * num_dims, batch.max_model_len)
            ),
            "prefill_positions_stride0": num_dims * batch.max_model_len,
            "prefill_positions_stride1": batch.max_model_len,
            "prefill_delta": integers(rng, -9, 9, batch.max_num_reqs),
            "idx_mapping": batch.idx_mapping,
            "query_start_loc": batch.query_start_loc,
            "prefill_lens": batch.state("prefill_len"),
            "num_computed_tokens": batch.state("num_computed"),
            "BLOCK_SIZE": 16,
            "NUM_DIMS": num_dims,
        },
    )


def rope_positions_of_four_dimensions(rng: np.random.Generator) -> Launch:
    return rope_positions(rng, num_dims=4)


def prompt_embeds(rng: np.random.Generator, dtype: torch.dtype = torch.float32) -> Launch:
    """Embeddings that end before, inside and behind a step's rows; some prompts mix in tokens."""
    batch = Batch(rng)
    num_embeds = np.maximum(batch.num_computed + rng.integers(-1, 16, batch.max_num_reqs), 0)
    num_embeds[batch.idx_np[1]] = 0
    embeds = [normals(rng, max(n, 1), _HIDDEN, dtype=dtype) for n in num_embeds]
    is_token = [integers(rng, 0, 2, max(n, 1), torch.uint8) for n in num_embeds]
    mask_ptrs = [t.data_ptr() if rng.random() < 0.6 else 0 for t in is_token]
    inputs_embeds = poison(batch.max_num_tokens, _HIDDEN, dtype=dtype)
    return Launch(
        grid=(batch.num_reqs, -(-int(batch.query_lens.max()) // 4)),
        arguments={
            "inputs_embeds": inputs_embeds,
            "inputs_embeds_stride": inputs_embeds.stride(0),
            "embeds_ptrs": torch.tensor([t.data_ptr() for t in embeds], dtype=torch.uint64),
            "mask_ptrs": torch.tensor(mask_ptrs, dtype=torch.uint64),
            "embeds_lens": torch.from_numpy(num_embeds).int(),
            "idx_mapping": batch.idx_mapping,
            "query_start_loc": batch.query_start_loc,
            "num_computed_tokens": batch.state("num_computed"),
            "hidden_size": _HIDDEN,
            "TOKEN_BLOCK": 4,
            "BLOCK_SIZE": 32,
        },
        pointees={
            f"{name} {i}": t for name, ts in (("e", embeds), ("m", is_token)) for i, t in enumerate(ts)
        },
        unspecified={"embeds_ptrs": ADDRESS, "mask_ptrs": ADDRESS},
    )


def prompt_embeds_in_bfloat16(rng: np.random.Generator) -> Launch:
    return prompt_embeds(rng, torch.bfloat16)


def num_nans(rng: np.random.Generator) -> Launch:
    logits = normals(rng, 5, 1500)
    logits[rng.random(logits.shape) < 0.01] = torch.nan
    logits[3] = torch.inf
    return Launch(
        grid=(5,),
        arguments={
            "logits": logits,
            "logits_stride": logits.stride(0),
            "num_nans": poison(5),
            "vocab_size": 1450,
            "BLOCK_SIZE": 1024,
        },
    )


CASES: dict[str, tuple[BuildLaunch, ...]] = {
    "mm.rope._prepare_rope_positions_kernel": (rope_positions, rope_positions_of_four_dimensions),
    "model_states.prompt_embeds._apply_prompt_embeds_kernel": (
        prompt_embeds,
        prompt_embeds_in_bfloat16,
    ),
    "metrics.logits._num_nans_kernel": (num_nans,),
}
