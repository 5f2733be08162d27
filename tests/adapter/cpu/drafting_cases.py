"""Launches of the kernels that prepare a drafter's inputs."""

from typing import Any

import numpy as np
import torch

from tests.adapter.cpu.launches import Batch, BuildLaunch, Launch, integers, normals, poison

_VOCAB = Batch.vocab_size


def _rejected(batch: Batch, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, batch.num_drafts + 1)


def prepare_target_dependent_prefill(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "last_token_indices": poison(batch.max_num_reqs, dtype=torch.int64),
            "draft_current_step": torch.tensor(3),
            "draft_input_ids": poison(batch.max_num_tokens),
            "draft_positions": poison(batch.max_num_tokens, dtype=torch.int64),
            "draft_query_start_loc": poison(batch.max_num_reqs + 1),
            "draft_seq_lens": poison(batch.max_num_reqs),
            "target_input_ids": integers(rng, 0, _VOCAB, batch.num_tokens),
            "target_positions": integers(rng, 0, 90, batch.num_tokens, torch.int64),
            "idx_mapping": batch.idx_mapping,
            "last_sampled": integers(rng, 0, _VOCAB, (batch.max_num_reqs, 1), torch.int64),
            "next_prefill_tokens": integers(rng, 0, _VOCAB, (2, batch.max_num_reqs)),
            "num_sampled": integers(rng, 0, 2, batch.num_reqs),
            "num_rejected": torch.from_numpy(_rejected(batch, rng)).int(),
            "query_start_loc": batch.query_start_loc,
            "seq_lens": batch.seq_lens,
            "max_num_reqs": batch.max_num_reqs,
            "BLOCK_SIZE": 16,
        },
    )


def prepare_decode_inputs(rng: np.random.Generator, advance: bool = True) -> Launch:
    batch = Batch(rng)
    drafts = integers(rng, 0, _VOCAB, (batch.max_num_reqs, batch.num_steps), torch.int64)
    drafts = drafts[: batch.num_reqs, 0]
    return Launch(
        grid=(batch.num_reqs + 1,),
        arguments={
            "draft_tokens": drafts,
            "draft_tokens_stride": drafts.stride(0),
            "target_seq_lens": batch.seq_lens,
            "num_rejected": torch.from_numpy(_rejected(batch, rng)).int(),
            "input_ids": poison(batch.max_num_tokens),
            "positions": integers(rng, 20, 40, batch.max_num_tokens, torch.int64),
            "sample_src_positions": integers(rng, 0, 40, batch.max_num_reqs, torch.int64),
            "query_start_loc": poison(batch.max_num_reqs + 1),
            "seq_lens": poison(batch.max_num_reqs),
            "max_model_len": 32,
            "max_num_reqs": batch.max_num_reqs,
            "BLOCK_SIZE": 16,
            "ADVANCE_DRAFT_POSITIONS": advance,
        },
    )


def prepare_decode_inputs_in_place(rng: np.random.Generator) -> Launch:
    return prepare_decode_inputs(rng, advance=False)


def update_draft_inputs(rng: np.random.Generator, *, step: int = 1, advance: bool = True) -> Launch:
    batch = Batch(rng)
    hidden_size = 37
    output = poison(batch.max_num_reqs, batch.num_steps, dtype=torch.int64)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "output_draft_tokens": output,
            "output_draft_tokens_stride": output.stride(0),
            "next_input_hidden_states": poison(20, hidden_size, dtype=torch.bfloat16),
            "next_input_hidden_states_stride": hidden_size,
            "input_ids": poison(batch.max_num_tokens),
            "positions": integers(rng, 20, 40, batch.max_num_tokens, torch.int64),
            "sample_src_positions": integers(rng, 0, 40, batch.max_num_reqs, torch.int64),
            "seq_lens": integers(rng, 20, 40, batch.max_num_reqs),
            "draft_tokens": integers(rng, 0, _VOCAB, batch.num_reqs, torch.int64),
            "current_draft_step": torch.tensor(step),
            "hidden_states": normals(rng, batch.num_reqs, hidden_size, dtype=torch.bfloat16),
            "hidden_states_stride": hidden_size,
            "hidden_size": hidden_size,
            "max_model_len": 32,
            "num_speculative_steps": batch.num_steps,
            "BLOCK_SIZE": 16,
            "ADVANCE_DRAFT_POSITIONS": advance,
        },
    )


def update_draft_inputs_in_place(rng: np.random.Generator) -> Launch:
    return update_draft_inputs(rng, advance=False)


def update_draft_inputs_at_last_step(rng: np.random.Generator) -> Launch:
    return update_draft_inputs(rng, step=Batch.num_steps - 1)


def prepare_standalone_prefill(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    size = batch.max_num_tokens + batch.max_num_reqs
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "target_input_ids": integers(rng, 0, _VOCAB, batch.num_tokens),
            "target_positions": integers(rng, 20, 40, batch.num_tokens, torch.int64),
            "last_sampled": integers(rng, 0, _VOCAB, (batch.max_num_reqs, 1)),
            "idx_mapping": batch.idx_mapping,
            "out_input_ids": poison(size),
            "out_positions": poison(size, dtype=torch.int64),
            "last_token_indices": poison(batch.max_num_reqs, dtype=torch.int64),
            "out_query_start_loc": poison(batch.max_num_reqs + 1),
            "out_seq_lens": poison(batch.max_num_reqs),
            "query_start_loc": batch.query_start_loc,
            "seq_lens": batch.seq_lens,
            "num_rejected": torch.from_numpy(_rejected(batch, rng)).int(),
            "max_num_reqs": batch.max_num_reqs,
            "max_model_len": 36,
            "BLOCK_SIZE": 16,
        },
    )


def prepare_blocks(rng: np.random.Generator, *, from_anchor: bool = False) -> Launch:
    batch = Batch(rng)
    steps, block_size, max_len = batch.num_steps, 16, 60
    num_queries = steps + (not from_anchor)
    num_samples, most_rows = batch.max_num_reqs * steps, batch.max_num_reqs * num_queries
    num_rows = max(batch.max_num_tokens, most_rows)
    starts = batch.query_start_loc[: batch.num_reqs + 1]
    first = rng.integers(0, 40, batch.num_reqs)
    positions = np.concatenate(
        [np.arange(count) + start for count, start in zip(batch.query_lens, first, strict=True)]
    )
    # Blocks of a window that has passed are null; drafts may reach beyond the last.
    table = integers(rng, 0, 50, (batch.num_reqs, max_len // block_size + 1))
    table[:, 0] = 0
    int64 = {"dtype": torch.int64}
    return Launch(
        grid=(batch.num_reqs, 2),
        arguments={
            "out_input_ids": poison(num_rows),
            "out_query_positions": poison(num_rows, **int64),
            "out_query_start_loc": poison(batch.max_num_reqs + 1),
            "out_seq_lens": poison(batch.max_num_reqs),
            "out_query_slot_mapping": poison(num_rows, **int64),
            "out_context_positions": poison(num_rows, **int64),
            "out_context_slot_mapping": poison(num_rows, **int64),
            "out_sample_indices": poison(num_samples, **int64),
            "out_sample_pos": poison(num_samples, **int64),
            "out_sample_idx_mapping": poison(num_samples, **int64),
            "out_temperature": poison(batch.max_num_reqs, dtype=torch.float32),
            "out_seeds": poison(batch.max_num_reqs, **int64),
            "target_positions": torch.from_numpy(positions),
            "target_query_start_loc": starts,
            "idx_mapping": batch.idx_mapping,
            "last_sampled": integers(rng, 0, _VOCAB, (batch.max_num_reqs, 1), torch.int64),
            "next_prefill_tokens": integers(rng, 0, _VOCAB, (1, batch.max_num_reqs)),
            "num_sampled": integers(rng, 0, 2, batch.num_reqs),
            "num_rejected": torch.from_numpy(_rejected(batch, rng)).int(),
            "temperature": normals(rng, batch.max_num_reqs),
            "seeds": integers(rng, 0, 90, batch.max_num_reqs, torch.int64),
            "block_table": table,
            "block_table_stride": table.stride(0),
            "parallel_drafting_token_id": 7,
            "block_size": block_size,
            "num_query_per_req": num_queries,
            "num_speculative_steps": steps,
            "max_num_reqs": batch.max_num_reqs,
            "max_num_tokens": num_rows,
            "max_model_len": max_len,
            "cp_rank": 0,
            "SAMPLE_FROM_ANCHOR": from_anchor,
            "PAD_SLOT_ID": -1,
            "CP_SIZE": 1,
            "CP_INTERLEAVE": 1,
            "BLOCK_SIZE": 16,
        },
    )


def prepare_blocks_from_anchors(rng: np.random.Generator) -> Launch:
    return prepare_blocks(rng, from_anchor=True)


def prepare_heads(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    size, steps = batch.max_num_reqs, batch.num_steps
    overrides = poison(size, steps - 1, dtype=torch.int64)
    next_tokens = integers(rng, 0, _VOCAB, (steps, size))
    cached = integers(rng, 0, _VOCAB, (size, steps - 1), torch.int64)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "last_token_indices": poison(size, dtype=torch.int64),
            "draft_input_ids": poison(batch.max_num_tokens),
            "draft_positions": poison(batch.max_num_tokens, dtype=torch.int64),
            "draft_seq_lens": poison(size),
            "target_input_ids": integers(rng, 0, _VOCAB, batch.num_tokens),
            "target_positions": integers(rng, 20, 90, batch.num_tokens, torch.int64),
            "cached_draft_input_ids": cached,
            "cached_draft_input_ids_stride0": cached.stride(0),
            "draft_input_id_overrides": overrides,
            "draft_input_id_overrides_stride0": overrides.stride(0),
            "idx_mapping": batch.idx_mapping,
            "last_sampled": integers(rng, 0, _VOCAB, (size, 1), torch.int64),
            "next_prefill_tokens": next_tokens,
            "next_prefill_tokens_stride0": next_tokens.stride(0),
            "num_sampled": integers(rng, 0, 2, batch.num_reqs),
            "num_rejected": torch.from_numpy(_rejected(batch, rng)).int(),
            "target_seq_lens": batch.seq_lens,
            "query_start_loc": batch.query_start_loc,
            "max_num_reqs": size,
            "num_speculative_steps": steps,
            "BLOCK_SIZE": 16,
        },
    )


def prepare_heads_states(rng: np.random.Generator, *, embeds: bool = False) -> Launch:
    batch = Batch(rng)
    width, rows = 37, batch.max_num_tokens
    target, cached, cached_embeds = (
        normals(rng, *shape)
        for shape in ((rows, width), *[(batch.max_num_reqs, batch.num_steps - 1, width)] * 2)
    )
    out, embedded = poison(rows, width, dtype=torch.float32), poison(rows, width, dtype=torch.float32)
    return Launch(
        grid=(batch.num_reqs, 2, 3),
        arguments={
            "draft_input_hidden_states": out,
            "draft_input_hidden_states_stride0": out.stride(0),
            "target_hidden_states": target,
            "target_hidden_states_stride0": target.stride(0),
            "cached_target_hidden_states": cached,
            "cached_target_hidden_states_stride0": cached.stride(0),
            "cached_target_hidden_states_stride1": cached.stride(1),
            "input_embeds": embedded,
            "input_embeds_stride0": embedded.stride(0),
            "cached_draft_input_embeds": cached_embeds,
            "cached_draft_input_embeds_stride0": cached_embeds.stride(0),
            "cached_draft_input_embeds_stride1": cached_embeds.stride(1),
            "idx_mapping": batch.idx_mapping,
            "num_rejected": torch.from_numpy(_rejected(batch, rng)).int(),
            "query_start_loc": batch.query_start_loc,
            "num_speculative_steps": batch.num_steps,
            "hidden_size": width,
            "BLOCK_SIZE_Q": 16,
            "BLOCK_SIZE_H": 16,
            "USE_INPUT_EMBEDS": embeds,
        },
    )


def prepare_heads_states_and_embeddings(rng: np.random.Generator) -> Launch:
    return prepare_heads_states(rng, embeds=True)


def _last_rows(batch: Batch, rng: np.random.Generator) -> torch.Tensor:
    """[num_reqs] rows that each request's own end with, fewer than it has."""
    ends = batch.query_start_loc[1 : batch.num_reqs + 1].numpy()
    return torch.from_numpy(ends - 1 - rng.integers(0, batch.query_lens)).long()


def pad_heads_slots(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    slots = integers(rng, 0, 999, (2, batch.max_num_tokens), torch.int64)
    return Launch(
        grid=(2, batch.num_reqs),
        arguments={
            "slot_mappings": slots,
            "slot_mappings_stride0": slots.stride(0),
            "query_start_loc": batch.query_start_loc,
            "last_token_indices": _last_rows(batch, rng),
            "PAD_ID": -1,
            "BLOCK_SIZE": 16,
        },
    )


def cache_heads_inputs(rng: np.random.Generator, *, embeds: bool = False) -> Launch:
    batch = Batch(rng)
    width, rows, kept = 37, batch.max_num_tokens, batch.num_steps - 1
    states, embedded = normals(rng, rows, width), normals(rng, rows, width)
    cached_ids = poison(batch.max_num_reqs, kept, dtype=torch.int64)
    cached, cached_embeds = (
        poison(batch.max_num_reqs, kept, width, dtype=torch.float32) for _ in range(2)
    )
    return Launch(
        grid=(batch.num_reqs, 3),
        arguments={
            "draft_input_ids": integers(rng, 0, _VOCAB, rows),
            "draft_input_embeds": embedded,
            "draft_input_embeds_stride0": embedded.stride(0),
            "draft_input_hidden_states": states,
            "draft_input_hidden_states_stride0": states.stride(0),
            "cached_draft_input_ids": cached_ids,
            "cached_draft_input_ids_stride0": cached_ids.stride(0),
            "cached_draft_input_embeds": cached_embeds,
            "cached_draft_input_embeds_stride0": cached_embeds.stride(0),
            "cached_draft_input_embeds_stride1": cached_embeds.stride(1),
            "cached_target_hidden_states": cached,
            "cached_target_hidden_states_stride0": cached.stride(0),
            "cached_target_hidden_states_stride1": cached.stride(1),
            "idx_mapping": _with_padding(batch),
            "last_token_indices": _last_rows(batch, rng),
            "query_start_loc": batch.query_start_loc,
            "num_speculative_steps": batch.num_steps,
            "hidden_size": width,
            "BLOCK_SIZE": 16,
            "USE_INPUT_EMBEDS": embeds,
        },
    )


def cache_heads_inputs_and_embeddings(rng: np.random.Generator) -> Launch:
    return cache_heads_inputs(rng, embeds=True)


def _with_padding(batch: Batch) -> torch.Tensor:
    """[num_reqs] request-state slots, one of which is padding's."""
    mapping = batch.idx_mapping.clone()
    mapping[-1] = -1
    return mapping


def shift_heads_ids(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "input_ids": integers(rng, 0, _VOCAB, batch.max_num_tokens),
            "idx_mapping": _with_padding(batch),
            "query_start_loc": batch.query_start_loc,
            "last_token_indices": _last_rows(batch, rng),
            "draft_tokens": integers(rng, 0, _VOCAB, batch.num_reqs, torch.int64),
            "BLOCK_SIZE": 16,
        },
    )


def shift_heads_embeddings(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    values, drafts = normals(rng, batch.max_num_tokens, 37), normals(rng, batch.num_reqs, 37)
    return Launch(
        grid=(batch.num_reqs, 3),
        arguments={
            "input_embeds": values,
            "input_embeds_stride0": values.stride(0),
            "draft_embeds": drafts,
            "draft_embeds_stride0": drafts.stride(0),
            "idx_mapping": _with_padding(batch),
            "query_start_loc": batch.query_start_loc,
            "last_token_indices": _last_rows(batch, rng),
            "hidden_size": 37,
            "BLOCK_SIZE_Q": 16,
            "BLOCK_SIZE_H": 16,
        },
    )


def scan_ngrams(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    max_len, block, most = 40, 16, 3
    num_blocks = -(-max_len // block)
    scratch = poison(batch.max_num_reqs, num_blocks + 1, dtype=torch.int64)[:, :num_blocks]
    return Launch(
        grid=(batch.num_reqs, num_blocks),
        arguments={
            **_texts(batch, rng, max_len),
            "scratch": scratch,
            "scratch_stride": scratch.stride(0),
            "L": max_len,
            "MIN_N": 2,
            "MAX_N": most,
            "MAX_N_PO2": 4,
            "BLOCK_L": block,
        },
    )


def take_ngrams(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    max_len, num_blocks = 40, 3
    texts = _texts(batch, rng, max_len)
    # The best match of a row: a length, and a position that the text has gone on from.
    n = rng.integers(2, 4, batch.num_reqs)
    lengths = texts["total_len"].numpy()[batch.idx_mapping.numpy()]
    position = rng.integers(0, np.maximum(lengths - n, 1))
    best = np.where(rng.random(batch.num_reqs) < 0.7, n * (max_len + 1) + position + 1, 0)
    scratch = torch.zeros((batch.max_num_reqs, num_blocks), dtype=torch.int64)
    scratch[: batch.num_reqs, 1] = torch.from_numpy(best)
    scratch[: batch.num_reqs, 2] = torch.from_numpy(best // 2)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            **texts,
            "last_sampled": integers(rng, 0, _VOCAB, batch.max_num_reqs, torch.int64),
            "scratch": scratch,
            "scratch_stride": scratch.stride(0),
            "drafts": poison(batch.max_num_reqs, 5, dtype=torch.int64),
            "L": max_len,
            "N_BLOCKS": num_blocks,
            "K": 5,
            "K_PO2": 8,
            "N_BLOCKS_PO2": 4,
        },
    )


def _texts(batch: Batch, rng: np.random.Generator, max_len: int) -> dict[str, Any]:
    """Texts of few different tokens, which repeat themselves; some shorter than any n-gram."""
    tokens = integers(rng, 0, 3, (batch.max_num_reqs, max_len))
    return {
        "token_ids": tokens,
        "token_ids_stride": tokens.stride(0),
        "idx_mapping": batch.idx_mapping,
        "total_len": integers(rng, 1, max_len + 1, batch.max_num_reqs),
        "num_sampled": integers(rng, 0, 3, batch.num_reqs),
    }


_HEADS = "spec_decode.multi_module_mtp.speculator"
_DEPENDENT = "spec_decode.target_dependent_ar.speculator"

CASES: dict[str, tuple[BuildLaunch, ...]] = {
    f"{_DEPENDENT}._prepare_prefill_inputs_kernel": (prepare_target_dependent_prefill,),
    f"{_DEPENDENT}._prepare_decode_inputs_kernel": (
        prepare_decode_inputs,
        prepare_decode_inputs_in_place,
    ),
    f"{_DEPENDENT}._update_draft_inputs_kernel": (
        update_draft_inputs,
        update_draft_inputs_in_place,
        update_draft_inputs_at_last_step,
    ),
    f"{_HEADS}._prepare_input_buffers_kernel": (prepare_heads,),
    f"{_HEADS}._prepare_input_hidden_states_and_embeddings_kernel": (
        prepare_heads_states,
        prepare_heads_states_and_embeddings,
    ),
    f"{_HEADS}._pad_trailing_draft_slots_kernel": (pad_heads_slots,),
    f"{_HEADS}._cache_inputs_kernel": (cache_heads_inputs, cache_heads_inputs_and_embeddings),
    f"{_HEADS}._shift_input_ids_kernel": (shift_heads_ids,),
    f"{_HEADS}._shift_input_embeds_kernel": (shift_heads_embeddings,),
    "spec_decode.dflash.speculator._prepare_dflash_inputs_kernel": (
        prepare_blocks,
        prepare_blocks_from_anchors,
    ),
    "spec_decode.ngram.speculator._ngram_scan_kernel": (scan_ngrams,),
    "spec_decode.ngram.speculator._ngram_finalize_kernel": (take_ngrams,),
    "spec_decode.standalone_ar.speculator._prepare_prefill_inputs_kernel": (
        prepare_standalone_prefill,
    ),
}
