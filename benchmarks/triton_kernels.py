"""Our device kernels on a GPU, beside FlashAttention on a chain of as many rows.

    python benchmarks/triton_kernels.py --out kernels.json

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
from pathlib import Path

import numpy as np
import torch
import triton

from vllm_smart.kernels.torch_select import RequestTerms, StepPromise, select_nodes
from vllm_smart.kernels.tree_attention_reference import pack_mask
from vllm_smart.kernels.triton_kv_compaction import KVCompaction, compact_rows
from vllm_smart.kernels.triton_tree_attention import PagedTreeBatch, num_splits_for, tree_attention
from vllm_smart.kernels.triton_walk import walk_trees

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 32, 8, 128, 16
NUM_LAYERS, HIDDEN_SIZE = 32, 4096
TIMED_LAYERS = 8
TOLERANCE = 2e-2  # bfloat16 outputs, averages of values around 1
Call = Callable[[], object]


def median_us(call: Call) -> float:
    return 1e3 * triton.testing.do_bench_cudagraph(call, rep=100, return_mode="median")


def flash_attention() -> Callable | None:
    """vLLM's FlashAttention, where vLLM is installed."""
    try:
        from vllm.vllm_flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


def random_parents(num_nodes: int, rng: np.random.Generator) -> np.ndarray:
    return np.array([-1, *(rng.integers(node) for node in range(1, num_nodes))], np.int32)


def random_batch(num_reqs: int, context: int, num_rows: int) -> PagedTreeBatch:
    """One random tree for all requests, in shuffled blocks."""
    rng, seq_len = np.random.default_rng(0), context + num_rows
    parent, visible = random_parents(num_rows, rng), np.eye(num_rows, dtype=bool)
    for row in range(1, num_rows):
        visible[row] |= visible[parent[row]]
    blocks = rng.permutation(num_reqs * -(-seq_len // BLOCK_SIZE)).reshape(num_reqs, -1)

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to("cuda", torch.int32)

    return PagedTreeBatch(
        query_start_loc=on_device(np.arange(num_reqs + 1) * num_rows),
        seq_lens=on_device(np.full(num_reqs, seq_len)),
        tail_lens=on_device(np.full(num_reqs, num_rows)),
        block_table=on_device(blocks),
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
    """Microseconds per step: selection, walk, and compaction of KV and hidden states."""
    rng = np.random.default_rng(0)

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).cuda()

    parent = on_device(np.tile(random_parents(num_nodes, rng), (num_reqs, 1)))
    token = on_device(rng.integers(0, 3, (num_reqs, num_nodes)))
    row_start = on_device(np.arange(num_reqs + 1, dtype=np.int32) * num_nodes)
    sampled = on_device(rng.integers(0, 3, num_reqs * num_nodes))
    path, emitted, accepted = torch.empty_like(parent), torch.empty_like(token), row_start[1:].clone()
    blocks = rng.permutation(num_reqs * 8).reshape(num_reqs, -1).astype(np.int32)
    shape = (NUM_LAYERS, blocks.size, BLOCK_SIZE, NUM_KV_HEADS, 2 * HEAD_SIZE)
    caches = torch.zeros(shape, dtype=torch.bfloat16, device="cuda").transpose(2, 3)
    compaction = KVCompaction(list(caches))
    # Five nodes accepted, all but the first out of place.
    moved = np.full((num_reqs, num_nodes), -1, np.int32)
    moved[:, :6] = [0, 1, 3, 5, 6, 7]
    places = (on_device(moved), on_device(np.full(num_reqs, 40)), on_device(blocks))
    hidden = torch.zeros(num_reqs * num_nodes, HIDDEN_SIZE, dtype=torch.bfloat16, device="cuda")
    prob = torch.rand(num_reqs, 4 * num_nodes, device="cuda").cumprod(dim=1)
    verify_ms = torch.linspace(5, 15, num_reqs * num_nodes + 1, dtype=torch.float64, device="cuda")
    one = torch.tensor(float(num_reqs), dtype=torch.float64, device="cuda")
    nothing = torch.zeros((), device="cuda")
    promise = StepPromise(one, one, nothing, nothing.double())
    terms = RequestTerms(torch.ones(num_reqs, device="cuda"), torch.full_like(row_start[1:], num_nodes))
    calls: dict[str, Call] = {
        "select": lambda: select_nodes(prob, num_nodes - 1, verify_ms, promise, terms),
        "walk": lambda: walk_trees(parent, token, row_start, sampled, path, accepted, emitted),
        "compact_kv": lambda: compaction.run(*places),
        "compact_rows": lambda: compact_rows(hidden, places[0], row_start[:-1]),
    }
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
