"""Our device kernels on a GPU, beside FlashAttention on a chain of as many rows.

    python -m benchmarks.triton_kernels --out kernels.json

Everything runs as a replayed CUDA graph, as in a decoding step; several layers' caches take turns, so
that none stays in the GPU's cache. Results are compared before anything is timed. Prints medians in
microseconds per layer (attention) or per step (the rest).
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import triton

from benchmarks.device_calls import (
    BLOCK_SIZE,
    HEAD_SIZE,
    NUM_KV_HEADS,
    Call,
    growth,
    on_device,
    random_parents,
    verification,
)
from vllm_smart.kernels.tree_attention import PagedTreeBatch, pack_mask
from vllm_smart.kernels.tree_attention.gpu import num_splits_for, tree_attention

NUM_HEADS, TIMED_LAYERS = 32, 8
TOLERANCE = 2e-2  # bfloat16 outputs, averages of values around 1


def median_us(call: Call) -> float:
    return 1e3 * triton.testing.do_bench_cudagraph(call, rep=100, return_mode="median")


def flash_attention() -> Callable | None:
    """vLLM's FlashAttention, where vLLM is installed."""
    try:
        from vllm.v1.attention.backends.fa_utils import get_flash_attn_version
        from vllm.vllm_flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    # Not its default, which is version 2 on every GPU.
    return partial(flash_attn_varlen_func, fa_version=get_flash_attn_version())


def random_batch(num_reqs: int, context: int, num_rows: int) -> PagedTreeBatch:
    """One random tree for all requests, in shuffled blocks."""
    rng, seq_len = np.random.default_rng(0), context + num_rows
    parent, visible = random_parents(num_rows, rng), np.eye(num_rows, dtype=bool)
    for row in range(1, num_rows):
        visible[row] |= visible[parent[row]]
    blocks = rng.permutation(num_reqs * -(-seq_len // BLOCK_SIZE)).reshape(num_reqs, -1)
    return PagedTreeBatch(
        query_start_loc=on_device(np.arange(num_reqs + 1, dtype=np.int32) * num_rows),
        seq_lens=on_device(np.full(num_reqs, seq_len, np.int32)),
        tail_lens=on_device(np.full(num_reqs, num_rows, np.int32)),
        block_table=on_device(blocks.astype(np.int32)),
        ancestor_mask=on_device(np.tile(pack_mask(visible).view(np.int32), (num_reqs, 1))),
        max_query_len=num_rows,
        num_splits=num_splits_for(
            num_reqs,
            NUM_KV_HEADS,
            num_rows,
            NUM_HEADS // NUM_KV_HEADS,
            seq_len,
            torch.cuda.get_device_properties(0).multi_processor_count,
        ),
    )


def attention(num_reqs: int, context: int, num_rows: int) -> dict[str, float]:
    """Microseconds per layer: our kernel on a tree, on a chain, and FlashAttention on the chain."""
    batch = random_batch(num_reqs, context, num_rows)
    chain = replace(batch, tail_lens=torch.zeros_like(batch.tail_lens))
    num_blocks = batch.block_table.numel()
    shape = (TIMED_LAYERS, num_blocks, BLOCK_SIZE, NUM_KV_HEADS, 2 * HEAD_SIZE)
    caches = torch.randn(shape, dtype=torch.bfloat16, device="cuda").transpose(2, 3)
    query = torch.randn(num_reqs * num_rows, NUM_HEADS, HEAD_SIZE, dtype=torch.bfloat16, device="cuda")
    output, scale = torch.empty_like(query), HEAD_SIZE**-0.5

    def ours(masks: PagedTreeBatch) -> Call:
        return lambda: [tree_attention(query, cache, output, masks, scale) for cache in caches]

    calls = {"tree": ours(batch), "chain": ours(chain)}
    flash = flash_attention()
    if flash is not None:

        def stock(cache: torch.Tensor) -> None:
            keys, values = cache.transpose(1, 2).split(HEAD_SIZE, dim=-1)
            flash(
                q=query,
                k=keys,
                v=values,
                out=output,
                cu_seqlens_q=batch.query_start_loc,
                max_seqlen_q=num_rows,
                seqused_k=batch.seq_lens,
                max_seqlen_k=context + num_rows,
                softmax_scale=scale,
                causal=True,
                block_table=batch.block_table,
            )

        stock(caches[0])
        expected = output.clone()
        tree_attention(query, caches[0], output, chain, scale)
        torch.testing.assert_close(output, expected, atol=TOLERANCE, rtol=TOLERANCE)
        calls["flash"] = lambda: [stock(cache) for cache in caches]
    times = {name: median_us(call) / TIMED_LAYERS for name, call in calls.items()}
    return {"num_splits": batch.num_splits, **times}


def machinery(num_reqs: int, num_nodes: int) -> dict[str, float]:
    """Microseconds of everything that a step runs beside the models' forwards, part by part."""
    calls = {**verification(num_reqs, num_nodes), **growth(num_reqs, num_nodes)}
    return {name: median_us(call) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 2048, 16384])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 6, 17, 33])
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/triton_kernels.py measures on a CUDA device, and there is none here.")
    versions = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    versions["triton"] = triton.__version__
    versions["flash"] = "none" if flash_attention() is None else "vllm.vllm_flash_attn"
    print(versions)
    results = []
    for num_reqs, context, rows in itertools.product(args.requests, args.contexts, args.rows):
        times = attention(num_reqs, context, rows)
        results.append({"requests": num_reqs, "context": context, "rows": rows, **times})
        print({k: round(v, 1) for k, v in results[-1].items()}, flush=True)
    for num_reqs in args.requests:
        times = machinery(num_reqs, num_nodes=33)
        results.append({"requests": num_reqs, "rows": 33, **times})
        print({k: round(v, 1) for k, v in results[-1].items()}, flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps({"versions": versions, "results": results}, indent=1))


if __name__ == "__main__":
    main()
