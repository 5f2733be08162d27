"""Launches of the kernels that prepare a step's inputs and record its results."""

import numpy as np
import torch

from tests.adapter.cpu.launches import ADDRESS, Batch, BuildLaunch, Launch, integers, poison

_VOCAB = Batch.vocab_size


def _all_token_ids(rng: np.random.Generator) -> torch.Tensor:
    return integers(rng, 0, _VOCAB, (Batch.max_num_reqs, Batch.max_model_len))


def prepare_prefill_inputs(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    tokens = _all_token_ids(rng)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "input_ids": poison(batch.max_num_tokens),
            "next_prefill_tokens": poison(3, batch.max_num_reqs),
            "next_prefill_tokens_stride": batch.max_num_reqs,
            "num_lookahead": 3,
            "idx_mapping": batch.idx_mapping,
            "query_start_loc": batch.query_start_loc,
            "all_token_ids": tokens,
            "all_token_ids_stride": tokens.stride(0),
            "prefill_lens": batch.state("prefill_len"),
            "num_computed_tokens": batch.state("num_computed"),
            "BLOCK_SIZE": 16,
            "LOOKAHEAD_BLOCK": 4,
        },
    )


def prepare_pos_seq_lens(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    return Launch(
        grid=(batch.num_reqs + 1,),
        arguments={
            "pos": poison(batch.max_num_tokens, dtype=torch.int64),
            "seq_lens": poison(batch.max_num_reqs),
            "idx_mapping": batch.idx_mapping,
            "query_start_loc": batch.query_start_loc,
            "num_computed_tokens": batch.state("num_computed"),
            "max_num_reqs": batch.max_num_reqs,
            "BLOCK_SIZE": 16,
        },
    )


def combine_sampled_and_draft_tokens(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    drafts = integers(rng, 0, _VOCAB, (batch.max_num_reqs, batch.num_steps), torch.int64)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "input_ids": poison(batch.max_num_tokens),
            "idx_mapping": batch.idx_mapping,
            "last_sampled_tokens": integers(rng, 0, _VOCAB, (batch.max_num_reqs, 1), torch.int64),
            "query_start_loc": batch.query_start_loc,
            "seq_lens": batch.seq_lens,
            "prefill_len": batch.state("prefill_len"),
            "draft_tokens": drafts,
            "draft_tokens_stride": drafts.stride(0),
            "cu_num_logits": batch.cu_num_logits,
            "logits_indices": poison(batch.total_num_logits, dtype=torch.int64),
            "BLOCK_SIZE": 8,
            "NUM_NEW_SAMPLED_TOKENS": 1,
        },
    )


def get_num_sampled_and_rejected(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "num_sampled": torch.from_numpy(rng.integers(1, batch.num_logits + 1)).int(),
            "num_rejected": poison(batch.num_reqs),
            "seq_lens": batch.seq_lens,
            "cu_num_logits": batch.cu_num_logits,
            "idx_mapping": batch.idx_mapping,
            "prefill_len": batch.state("prefill_len"),
        },
    )


def post_update(rng: np.random.Generator, *, counts: bool = True, queries: bool = True) -> Launch:
    batch = Batch(rng)
    tokens = _all_token_ids(rng)
    # Few distinct tokens, so that one step samples a token twice.
    sampled = integers(rng, 0, 9, (batch.num_reqs, batch.num_steps + 1), torch.int64)
    idx_mapping = batch.idx_mapping.clone()
    idx_mapping[2] = -1
    bin_counts = integers(rng, 0, 5, (batch.max_num_reqs, _VOCAB)) if counts else None
    num_sampled = rng.integers(0, batch.num_steps + 2, batch.num_reqs)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "idx_mapping": idx_mapping,
            "num_computed_tokens": batch.state("num_computed"),
            "last_sampled_tokens": poison(batch.max_num_reqs, 1, dtype=torch.int64),
            "output_bin_counts": bin_counts,
            "output_bin_counts_stride": _VOCAB if counts else 0,
            "sampled_tokens": sampled,
            "sampled_tokens_stride": sampled.stride(0),
            "num_sampled": torch.from_numpy(num_sampled).int(),
            "num_rejected": integers(rng, 0, 3, batch.num_reqs),
            "query_start_loc": batch.query_start_loc if queries else None,
            "all_token_ids": tokens,
            "all_token_ids_stride": tokens.stride(0),
            "total_len": integers(rng, 1, 50, batch.max_num_reqs),
        },
    )


def post_update_without_counts(rng: np.random.Generator) -> Launch:
    return post_update(rng, counts=False, queries=False)


def post_update_num_computed_tokens(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "idx_mapping": batch.idx_mapping,
            "num_computed_tokens": batch.state("num_computed"),
            "query_start_loc": batch.query_start_loc,
        },
    )


def expand_idx_mapping(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    return Launch(
        grid=(batch.num_reqs,),
        arguments={
            "idx_mapping": batch.idx_mapping,
            "expanded_idx_mapping": poison(batch.total_num_logits, dtype=torch.int64),
            "expanded_local_pos": poison(batch.total_num_logits),
            "cu_num_logits": batch.cu_num_logits,
            "BLOCK_SIZE": 8,
        },
    )


_LONGEST_WRITE, _WRITE_CHUNKS = 40, 3  # of 16; before 0.33 each program writes all


def _staged_writes(rng: np.random.Generator, num_writes: int) -> dict[str, torch.Tensor]:
    lengths = rng.integers(1, _LONGEST_WRITE, num_writes)
    return {
        "write_indices": torch.from_numpy(rng.permutation(Batch.max_num_reqs)[:num_writes]).int(),
        "write_starts": integers(rng, 0, 50, num_writes),
        "write_contents": integers(rng, 0, _VOCAB, lengths.sum()),
        "write_cu_lens": torch.from_numpy(np.cumsum(lengths)).int(),
    }


def apply_write(rng: np.random.Generator) -> Launch:
    output = poison(Batch.max_num_reqs, Batch.max_model_len)
    return Launch(
        grid=(5, _WRITE_CHUNKS),
        arguments={
            "output": output,
            "output_stride": output.stride(0),
            **_staged_writes(rng, 5),
            "write_group_ids": None,
            "BLOCK_SIZE": 16,
            "MULTI_GROUP": False,
        },
    )


def _addresses(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.uint64)


def _strides(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([tensor.stride(0) for tensor in tensors], dtype=torch.int64)


def apply_write_to_groups(rng: np.random.Generator) -> Launch:
    outputs = [poison(Batch.max_num_reqs, width) for width in (96, 112)]
    return Launch(
        grid=(7, _WRITE_CHUNKS),
        arguments={
            "output": _addresses(outputs),
            "output_stride": _strides(outputs),
            **_staged_writes(rng, 7),
            "write_group_ids": integers(rng, 0, 2, 7),
            "BLOCK_SIZE": 16,
            "MULTI_GROUP": True,
        },
        pointees={"first": outputs[0], "second": outputs[1]},
        unspecified={"output": ADDRESS},
    )


def gather_block_tables(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    widths = (16, 8)
    sources = [integers(rng, 0, 999, (batch.max_num_reqs, width)) for width in widths]
    targets = [poison(batch.max_num_reqs, width) for width in widths]
    num_blocks = integers(rng, 0, 9, (2, batch.max_num_reqs))
    return Launch(
        grid=(2, batch.num_reqs),
        arguments={
            "batch_idx_to_req_idx": batch.idx_mapping,
            "src_block_table_ptrs": _addresses(sources),
            "dst_block_table_ptrs": _addresses(targets),
            "block_table_strides": _strides(sources),
            "num_blocks": num_blocks,
            "num_blocks_stride": num_blocks.stride(0),
            "num_reqs": batch.num_reqs,
            "BLOCK_SIZE": 4,
        },
        pointees={"first": targets[0], "second": targets[1], "a": sources[0], "b": sources[1]},
        unspecified={"src_block_table_ptrs": ADDRESS, "dst_block_table_ptrs": ADDRESS},
    )


def compute_slot_mappings(rng: np.random.Generator) -> Launch:
    batch = Batch(rng)
    tables = [integers(rng, 0, 999, (batch.max_num_reqs, width)) for width in (16, 8, 8)]
    idx_mapping = batch.idx_mapping.clone()
    idx_mapping[3] = -1
    slots = poison(3, batch.max_num_tokens, dtype=torch.int64)
    return Launch(
        grid=(3, batch.num_reqs + 1),
        arguments={
            "max_num_tokens": batch.max_num_tokens,
            "idx_mapping": idx_mapping,
            "query_start_loc": batch.query_start_loc,
            "pos": integers(rng, 0, batch.max_model_len, batch.num_tokens, torch.int64),
            "block_table_ptrs": _addresses(tables),
            "block_table_strides": _strides(tables),
            "block_sizes": torch.tensor([8, 16, 16], dtype=torch.int32),
            "slot_mapping_enabled": torch.tensor([True, True, False]),
            "dcp_sharded": torch.tensor([True, True, True]),
            "slot_mappings": slots,
            "slot_mappings_stride": slots.stride(0),
            "cp_rank": 0,
            "CP_SIZE": 1,
            "CP_INTERLEAVE": 1,
            "PAD_ID": -1,
            "TRITON_BLOCK_SIZE": 16,
        },
        pointees={"first": tables[0], "second": tables[1], "third": tables[2]},
        unspecified={"block_table_ptrs": ADDRESS},
    )


CASES: dict[str, tuple[BuildLaunch, ...]] = {
    "input_batch._prepare_prefill_inputs_kernel": (prepare_prefill_inputs,),
    "input_batch._prepare_pos_seq_lens_kernel": (prepare_pos_seq_lens,),
    "input_batch._combine_sampled_and_draft_tokens_kernel": (combine_sampled_and_draft_tokens,),
    "input_batch._get_num_sampled_and_rejected_kernel": (get_num_sampled_and_rejected,),
    "input_batch._post_update_kernel": (post_update, post_update_without_counts),
    "input_batch._post_update_num_computed_tokens_kernel": (post_update_num_computed_tokens,),
    "input_batch._expand_idx_mapping_kernel": (expand_idx_mapping,),
    "buffer_utils._apply_write_kernel": (apply_write, apply_write_to_groups),
    "block_table._gather_block_tables_kernel": (gather_block_tables,),
    "block_table._compute_slot_mappings_kernel": (compute_slot_mappings,),
}
