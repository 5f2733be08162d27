"""Compiles the device kernels for a GPU that need not be there, as their launchers would; no launch.

    python -m tests.kernels.compile_for_hopper

Prints a JSON list, one entry per compiled kernel: its name, the bytes each thread keeps in memory
because its registers are full, whether it uses the tensor cores' asynchronous instructions, and
whether it loads 16 bytes at a time. The interpreter takes what the compiler refuses, and knows
nothing of these.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from vllm_smart.kernels.acceptance.device import DeviceAcceptance
from vllm_smart.kernels.arrange_rows.gpu import arrange_trees
from vllm_smart.kernels.choose.device import RequestTerms, StepPromise
from vllm_smart.kernels.choose.gpu import choose_best, order_candidates
from vllm_smart.kernels.coupled_tokens.device import DeviceNoise
from vllm_smart.kernels.grow.device import DeviceCandidates, DeviceDraftSlots
from vllm_smart.kernels.grow.gpu import add_children, begin_growth, expand_level, settle
from vllm_smart.kernels.kv_compaction.gpu import KVCompaction
from vllm_smart.kernels.plant import KeptTrees
from vllm_smart.kernels.plant.gpu import plant_trees, report_candidates
from vllm_smart.kernels.read_rows import ReadRows, RowsToRead
from vllm_smart.kernels.read_rows.gpu import gather_rows, place_reads
from vllm_smart.kernels.share_rows.gpu import row_starts, share_out
from vllm_smart.kernels.top_tokens.gpu import top_tokens
from vllm_smart.kernels.tree_attention import PagedTreeBatch
from vllm_smart.kernels.tree_attention.gpu import tree_attention
from vllm_smart.kernels.walk.gpu import walk_trees

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_DRIVER = SimpleNamespace(
    get_current_device=lambda: 0,
    get_current_stream=lambda device: 0,
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
)


def resources(kernel) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        command = [str(_TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stack = re.search(r"STACK:(\d+)", usage)
    assert stack is not None, usage
    return {
        "name": kernel.metadata.name,
        "stack_bytes": int(stack[1]),
        "wgmma": "wgmma" in kernel.asm["ptx"],
        "wide_loads": re.search(r"ld\.global\S*\.v4", kernel.asm["ptx"]) is not None,
    }


def attend(head_size: int, group: int, query_len: int, num_splits: int) -> None:
    num_reqs, num_kv_heads, block_size = 2, 2, 16
    query = torch.zeros(num_reqs * query_len, num_kv_heads * group, head_size, dtype=torch.bfloat16)
    cache = torch.zeros(8, block_size, num_kv_heads, 2 * head_size, dtype=torch.bfloat16)
    batch = PagedTreeBatch(
        query_start_loc=torch.zeros(num_reqs + 1, dtype=torch.int32),
        seq_lens=torch.zeros(num_reqs, dtype=torch.int32),
        tail_lens=torch.zeros(num_reqs, dtype=torch.int32),
        block_table=torch.zeros(num_reqs, 64, dtype=torch.int32),
        ancestor_mask=torch.zeros(len(query), 2, dtype=torch.int32),
        max_query_len=query_len,
        num_splits=num_splits,
    )
    tree_attention(query, cache.transpose(1, 2), torch.empty_like(query), batch, 0.1)


def grow(num_reqs: int = 3, depth: int = 6, width: int = 8, children: int = 4) -> None:
    cpu, level = torch.device("cpu"), torch.zeros(1, dtype=torch.int64)
    candidates = DeviceCandidates.room(num_reqs, depth, width, children, cpu)
    slots = DeviceDraftSlots.room(num_reqs, num_reqs * width, 32, cpu)
    ones, numbers = torch.ones(num_reqs), torch.zeros(num_reqs, dtype=torch.int64)
    settle(numbers.int(), ones, *(numbers,) * 6, ones, reads_bonus=True, max_len=99)
    begin_growth(candidates, slots, level, *(numbers,) * 4, max_len=99, most_slots=32)
    inputs = torch.zeros(99, dtype=torch.int32), torch.zeros(99, dtype=torch.int64)
    num_rows = num_reqs * width - 1
    rows = expand_level(candidates, slots, level, numbers, ones, num_rows, *inputs)
    drafted = torch.zeros(num_rows, children)
    learnt = torch.zeros(2, depth, children)
    add_children(
        *(candidates, level, rows.frontier, rows.row, drafted.long(), drafted, drafted[:num_reqs]),
        DeviceAcceptance(learnt, learnt, ones, numbers, 1e-4),
        torch.ones((), dtype=torch.float64),
    )
    prices = torch.zeros(99, dtype=torch.float64)
    ordered = order_candidates(candidates, 32, RequestTerms(ones, numbers))
    chosen = choose_best(ordered, StepPromise(*prices[:6], verify_ms=prices))
    kept = torch.zeros(num_reqs, 33, dtype=torch.int32)
    trees = KeptTrees(kept.long(), kept, kept, torch.stack((kept, kept), dim=2), kept.float())
    host = torch.zeros(num_reqs, 4 * 33 + 1, dtype=torch.int32), torch.zeros(num_reqs, 66)
    plant_trees(candidates, ordered, chosen, ones, numbers, trees, *host)
    ints = torch.zeros(num_reqs, 5 * candidates.token.shape[1], dtype=torch.int32)
    report_candidates(candidates, ints, ints[:, : 2 * candidates.token.shape[1]].float())
    share_out(trees.value, numbers, numbers.int(), 5)
    row_starts(numbers.int(), numbers.int(), torch.zeros(9, dtype=torch.int32))


def read() -> None:
    long, rows = torch.zeros(9, dtype=torch.int64), torch.zeros(9, 4096, dtype=torch.bfloat16)
    ints, path = long.int(), torch.zeros(9, 8, dtype=torch.int32)
    out = ReadRows(ints, long, long, ints, ints, ints, long, ints)
    reads = RowsToRead(*[long] * RowsToRead.num_fields())
    place_reads(reads, long, path, path, 1, 80, out)
    gather_rows(rows, rows, long, rows)


def launch_all() -> None:
    for head_size, group, query_len, num_splits in (
        (64, 4, 33, 1),
        (80, 1, 33, 1),
        (128, 1, 13, 1),
        (128, 4, 33, 1),
        (128, 4, 33, 8),
        (256, 8, 33, 4),
    ):
        attend(head_size, group, query_len, num_splits)
    tree = torch.zeros(3, 33, dtype=torch.int32)
    long = torch.zeros(3, 33, dtype=torch.int64)
    walk_trees(tree, long, tree[0], long[0], tree, tree[1], long)
    mask, rows = torch.zeros(3, 33, 2, dtype=torch.int32), torch.zeros(99, 2, dtype=torch.int32)
    kept = KeptTrees(long, tree, tree, mask, tree.float())
    arrange_trees(
        *(long[0, :3], tree[0], tree[0], kept, long[0], long[0], rows),
        *(tree[1, :3], long[1], tree[1], long[2], tree, long),
    )
    grow()
    read()
    cache = torch.zeros(8, 16, 8, 256, dtype=torch.bfloat16).transpose(1, 2)
    KVCompaction([cache, cache]).run(tree, tree[0], torch.zeros(3, 64, dtype=torch.int32))
    top_tokens(torch.zeros(3, 128256, dtype=torch.bfloat16), torch.zeros(3), 4)
    top_tokens(torch.zeros(3, 2048), torch.zeros(3), 10)
    coupled = DeviceNoise(*long[:3, :3], long[0, :1], long[0, :3], draws_53_bits=False)
    top_tokens(torch.zeros(3, 128256, dtype=torch.bfloat16), torch.zeros(3), 4, coupled)


def main() -> None:
    compiled = []
    launch = JITFunction.run

    def compile_only(self, *args, warmup, **kwargs):
        compiled.append(launch(self, *args, warmup=True, **kwargs))

    triton.runtime.driver.set_active(_DRIVER)
    JITFunction.run = compile_only
    launch_all()
    print(json.dumps([resources(kernel) for kernel in compiled]))


if __name__ == "__main__":
    main()
