"""Tree attention on CPU against vLLM's own CPU kernel on a chain of as many rows.

    OMP_NUM_THREADS=2 python benchmarks/cpu_tree_attention.py --dtype bfloat16 --out ratios.json

Every variant runs once per round, in turn, so that a busy machine slows all of them alike; between
calls a matrix product keeps torch's threads as busy as a model does. Prints medians of milliseconds,
of which only the ratios say anything, and writes the ratios.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from vllm.platforms import current_platform

from vllm_smart.attention.stock import stock_attention
from vllm_smart.kernels.cpu.stock import BINARY
from vllm_smart.kernels.tree_attention import TreeAttentionBatch, pack_mask
from vllm_smart.kernels.tree_attention.cpu import CpuTreeAttention, TreeAttentionLayer

HEADS = {"12/4/64": (12, 4, 64), "32/8/128": (32, 8, 128)}
BLOCK_SIZE = 128


def make_batch(
    num_reqs: int, context: int, num_rows: int, rng: np.random.Generator
) -> TreeAttentionBatch:
    """Random trees of `num_rows` rows each, after a context, in shuffled blocks."""
    seq_len = context + num_rows
    num_blocks = -(-seq_len // BLOCK_SIZE)
    visible = np.eye(num_rows, dtype=bool)
    for row in range(1, num_rows):
        visible[row] |= visible[rng.integers(row)]
    return TreeAttentionBatch(
        requests=np.arange(num_reqs),
        query_start_loc=np.arange(num_reqs + 1, dtype=np.int32) * num_rows,
        seq_lens=np.full(num_reqs, seq_len, dtype=np.int32),
        tail_lens=np.full(num_reqs, num_rows, dtype=np.int32),
        block_table=rng.permutation(num_reqs * num_blocks).astype(np.int32).reshape(num_reqs, -1),
        ancestor_mask=np.tile(pack_mask(visible), (num_reqs, 1)),
    )


def as_chain(batch: TreeAttentionBatch) -> TreeAttentionBatch:
    """The same rows, each of which sees all rows before it."""
    num_rows = int(batch.tail_lens[0])
    mask = pack_mask(np.tri(num_rows, dtype=bool))
    return replace(batch, ancestor_mask=np.tile(mask, (len(batch.seq_lens), 1)))


def medians_ms(calls: list[Callable[[], None]], seconds: float, weight: torch.Tensor) -> list[float]:
    """Median milliseconds of each call, run in turn, a matrix product between any two."""
    times: list[list[float]] = [[] for _ in calls]
    hidden = torch.ones(8, weight.shape[0], dtype=weight.dtype)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(times[0]) < 5:
        for call, record in zip(calls, times, strict=True):
            torch.mm(hidden, weight)
            start = time.perf_counter()
            call()
            record.append((time.perf_counter() - start) * 1000)
    return [statistics.median(record[1:]) for record in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--heads", choices=HEADS, nargs="+", default=list(HEADS))
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--nodes", type=int, nargs="+", default=[0, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=0.5, help="per line of the table")
    parser.add_argument("--out", type=Path, help="a JSON file for the ratios")
    args = parser.parse_args()
    current_platform.import_kernels()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    dtype = getattr(torch, args.dtype)
    attention = CpuTreeAttention()
    threads = attention.team.num_threads
    print(f"{args.dtype}, {threads} threads, block size {BLOCK_SIZE}, vLLM's {BINARY.value}")
    print("heads/kv/size  context batch rows | stock ms | chain ms  tree ms | chain/stock tree/stock")
    ratios = []
    weight = torch.randn(512, 512, dtype=dtype)
    for name, context, num_reqs, nodes in itertools.product(
        args.heads, args.contexts, args.batches, args.nodes
    ):
        num_heads, num_kv_heads, head_size = HEADS[name]
        batch = make_batch(num_reqs, context, 1 + nodes, rng)
        shape = (batch.block_table.size, num_kv_heads, BLOCK_SIZE, 2 * head_size)
        kv_cache = torch.randn(shape, dtype=dtype)
        query = torch.randn(len(batch.ancestor_mask), num_heads, head_size, dtype=dtype)
        output = torch.empty_like(query)
        scale = head_size**-0.5
        layer = TreeAttentionLayer(query, kv_cache, output, scale)
        plans = [attention.plan(as_chain(batch)), attention.plan(batch)]
        rows = batch.query_start_loc, batch.seq_lens, batch.block_table
        calls = [stock_attention(query, kv_cache, output, *rows, scale, splits_kv=True)]
        calls += [partial(plan.run, layer, query, output) for plan in plans]
        stock, chain, tree = medians_ms(calls, args.seconds, weight)
        ratios.append(
            {
                "heads": name,
                "context": context,
                "requests": num_reqs,
                "rows": 1 + nodes,
                "chain_to_stock": round(chain / stock, 3),
                "tree_to_stock": round(tree / stock, 3),
            }
        )
        print(
            f"{name:>13} {context:>8} {num_reqs:>5} {1 + nodes:>4} |{stock:>9.3f} |{chain:>9.3f}"
            f"{tree:>9.3f} |{chain / stock:>12.2f}{tree / stock:>11.2f}",
            flush=True,
        )
    medians = {
        key: statistics.median(shape[key] for shape in ratios)
        for key in ("chain_to_stock", "tree_to_stock")
    }
    print("medians over shapes:", medians)
    if args.out is not None:
        setting = {"dtype": args.dtype, "threads": threads, "binary": BINARY.value}
        args.out.write_text(
            json.dumps({**setting, "medians": medians, "shapes": ratios}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
