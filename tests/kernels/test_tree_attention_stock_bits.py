"""Contracts with vLLM's CPU attention: the layout of its cache, and the bits of its results.

The kernels follow the binary that vLLM loads on this host. The slow tests run the same comparison in
processes that are told that they have an older processor.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kernels.paged_trees import Case, Shape, random_case
from vllm_smart.kernels.cpu import stock
from vllm_smart.kernels.cpu.openmp import OpenMPTeam
from vllm_smart.kernels.cpu.stock import StockBinary
from vllm_smart.kernels.kv_compaction.cpu import CpuKVCompaction
from vllm_smart.kernels.tree_attention import PLAIN, LayerRules, pack_kv, pack_mask, unpack_kv
from vllm_smart.kernels.tree_attention.cpu import CpuTreeAttention, TreeAttentionLayer

ops = pytest.importorskip("vllm._custom_ops")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CONTEXTS = [0, 1, 127, 1000, 3000]
ROWS = [33, 17, 20, 24, 61]
SHAPES = [
    Shape(num_heads=4, num_kv_heads=4, head_size=32, block_size=32),
    Shape(num_heads=6, num_kv_heads=2, head_size=64, block_size=128),
    Shape(num_heads=8, num_kv_heads=2, head_size=96, block_size=64),
    Shape(num_heads=16, num_kv_heads=2, head_size=128, block_size=128),
    Shape(num_heads=20, num_kv_heads=1, head_size=160, block_size=32),
    Shape(num_heads=4, num_kv_heads=1, head_size=192, block_size=32),
    Shape(num_heads=3, num_kv_heads=1, head_size=256, block_size=96),
    Shape(num_heads=4, num_kv_heads=1, head_size=512, block_size=32),
    # vLLM's "vec16"
    Shape(num_heads=8, num_kv_heads=2, head_size=48, block_size=32),
    Shape(num_heads=3, num_kv_heads=1, head_size=80, block_size=64),
    Shape(num_heads=8, num_kv_heads=1, head_size=112, block_size=32),
]


@pytest.fixture(scope="module", autouse=True)
def _vllm_on_cpu():
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("vLLM is not built for CPUs")
    current_platform.import_kernels()


@pytest.fixture(scope="module")
def attention() -> CpuTreeAttention:
    return CpuTreeAttention(num_threads=1)


def alone(case: Case, rules: LayerRules = PLAIN) -> torch.Tensor:
    """What vLLM's operator gives each node as a request of its own."""
    from vllm_smart.attention.stock_check import decode_each_alone

    output = case.poisoned_output()
    decode_each_alone(case.query, case.kv_cache, output, case.batch, case.scale, rules)
    return output


def tree(attention: CpuTreeAttention, case: Case, rules: LayerRules = PLAIN) -> torch.Tensor:
    output = case.poisoned_output()
    layer = TreeAttentionLayer(case.query, case.kv_cache, output, case.scale, rules)
    attention.plan(case.batch).run(layer, case.query, output)
    return output


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.head_size}")
def test_each_node_has_the_bits_that_it_has_when_it_decodes_alone(attention, shape, dtype):
    case = random_case(replace(shape, dtype=dtype), CONTEXTS, ROWS)
    assert torch.equal(tree(attention, case), alone(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0])
def test_flat_and_peaked_softmaxes_have_the_same_bits_too(attention, scale, dtype):
    case = replace(random_case(Shape(dtype=dtype), CONTEXTS, ROWS), scale=scale)
    assert torch.equal(tree(attention, case), alone(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_a_soft_cap_has_the_same_bits(attention, softcap, dtype):
    case = random_case(Shape(head_size=128, dtype=dtype), CONTEXTS, ROWS)
    case, rules = replace(case, scale=0.5), LayerRules(softcap=softcap)
    assert torch.equal(tree(attention, case, rules), alone(case, rules))


def slopes(num_heads: int) -> torch.Tensor:
    return 3.0 ** -torch.arange(1.0, num_heads + 1)


SINKS = torch.linspace(-3.0, 12.0, 8)  # some far above all scores, some far below
RULES = {
    "window of one": LayerRules(window=1),
    "window": LayerRules(window=37),
    "wide window": LayerRules(window=1007),
    "chunks": LayerRules(chunk=64),
    "sinks": LayerRules(sinks=SINKS),
    "bfloat16 sinks": LayerRules(sinks=SINKS.bfloat16()),
    "window and sinks": LayerRules(window=128, sinks=SINKS),
    "biases": LayerRules(alibi_slopes=slopes(8)),
    "all": LayerRules(5.0, slopes(8), window=200, sinks=SINKS),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_size", [64, 80])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_what_is_special_about_a_layer_has_the_same_bits(attention, rules, head_size, dtype):
    shape = Shape(num_heads=8, num_kv_heads=2, head_size=head_size, dtype=dtype)
    case = random_case(shape, CONTEXTS, ROWS)
    assert torch.equal(tree(attention, case, rules), alone(case, rules))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_pieces_change_no_bit(dtype):
    case = random_case(Shape(num_heads=8, num_kv_heads=1, dtype=dtype), CONTEXTS, ROWS)
    assert torch.equal(tree(CpuTreeAttention(num_threads=3), case), alone(case))


def beyond_a_tile(head_size: int, dtype: torch.dtype, boost: float) -> Case:
    """Contexts that end before, at and after the end of a tile of keys, and near that of the second.

    The keys are `boost` times as large from just before the second tile on.
    """
    tile = stock.key_tile(head_size, stock.isa(dtype, head_size))
    shape = Shape(num_heads=3, num_kv_heads=1, head_size=head_size, dtype=dtype)
    case = random_case(shape, [tile - 6, tile - 40, tile, tile + 9, 2 * tile - 13], [24, 33, 9, 20, 30])
    keys, values = unpack_kv(case.kv_cache)
    for request, seq_len in enumerate(case.batch.seq_lens.tolist()):
        token = np.arange(tile - 3, seq_len)
        block = torch.from_numpy(case.batch.block_table[request, token // 32]).long()
        keys[block, :, token % 32] *= boost
    return replace(case, kv_cache=pack_kv(keys, values))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_size", "boost"), [(32, 1), (32, 6), (48, 1), (48, 6)], ids=str)
@pytest.mark.parametrize("forgets", [False, True])
def test_each_node_keeps_its_own_tiles_of_keys(attention, forgets, head_size, boost, dtype):
    case = beyond_a_tile(head_size, dtype, boost)
    rules = more_than_a_tile(head_size, dtype) if forgets else PLAIN
    assert torch.equal(tree(attention, case, rules), alone(case, rules))


def more_than_a_tile(head_size: int, dtype: torch.dtype) -> LayerRules:
    """A window under which tiles of one tree's nodes begin at two places, in the last context."""
    return LayerRules(window=stock.key_tile(head_size, stock.isa(dtype, head_size)) + 54)


def test_tiles_that_begin_elsewhere_have_other_bits(attention, monkeypatch):
    """A control."""
    case, rules = beyond_a_tile(32, torch.float32, boost=1), more_than_a_tile(32, torch.float32)
    monkeypatch.setattr(stock, "key_alignment", lambda head_size: 128)
    assert not torch.equal(tree(attention, case, rules), alone(case, rules))


def test_tiles_of_another_size_have_other_bits(attention, monkeypatch):
    """A control."""
    case = beyond_a_tile(32, torch.float32, boost=1)
    tile = stock.key_tile(32, "vec")
    monkeypatch.setattr(stock, "key_tile", lambda head_size, isa: tile - 32)
    assert not torch.equal(tree(attention, case), alone(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_another_order_of_summation_has_other_bits(attention, dtype):
    """A control: the same tokens, in the opposite order."""
    case = random_case(Shape(dtype=dtype), [1000], [20])
    token = np.arange(1000)
    block = torch.from_numpy(case.batch.block_table[0, token // 32]).long()
    offset = torch.from_numpy(token % 32)
    keys, values = unpack_kv(case.kv_cache.clone())
    keys[block, :, offset] = keys[block, :, offset].flip(0)
    values[block, :, offset] = values[block, :, offset].flip(0)
    backwards = replace(case, kv_cache=pack_kv(keys, values))
    difference = (tree(attention, backwards) - alone(case)).abs().max()
    assert 0 < difference < 0.01


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_long_chain_has_the_bits_of_decoding_which_vllm_s_own_kernel_gives_short_ones(
    attention, dtype
):
    shape = Shape(num_heads=8, num_kv_heads=2, head_size=128, dtype=dtype)
    case = random_case(shape, [3000, 3000], [8, 20])
    chains = [np.tri(count, 20, dtype=bool) for count in (8, 20)]
    case = replace(case, batch=replace(case.batch, ancestor_mask=pack_mask(np.concatenate(chains))))
    # vLLM's kernel multiplies what lies beyond the sequence by zero: no NaN for it.
    case = replace(case, kv_cache=case.kv_cache.nan_to_num())
    decoded, causal = alone(case), stock_attention(case)
    assert torch.equal(tree(attention, case), decoded)
    assert torch.equal(causal[:8], decoded[:8])
    if dtype == torch.float32:  # half the bits hide the difference in most of the other numbers
        assert not torch.equal(causal[8:], decoded[8:])


def stock_views(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As vLLM's CPUAttentionBackendImpl makes them."""
    num_blocks, num_kv_heads, block_size, _ = kv_cache.shape
    keys, values = kv_cache.view(num_blocks, num_kv_heads, block_size * 2, -1).chunk(2, dim=2)
    return keys, values


def stock_attention(case: Case) -> torch.Tensor:
    """vLLM's operator on all rows at once, causal."""
    keys, values = stock_views(case.kv_cache)
    query_start_loc = torch.from_numpy(case.batch.query_start_loc)
    seq_lens = torch.from_numpy(case.batch.seq_lens)
    metadata = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(seq_lens),
        num_heads=case.query.shape[1],
        num_kv_heads=keys.shape[1],
        head_dim=case.query.shape[2],
        seq_lens=seq_lens,
        dtype=case.query.dtype,
        query_start_loc=query_start_loc,
        causal=True,
        sliding_window_size=-1,
        isa=stock.isa(case.query.dtype, case.query.shape[2]),
        enable_kv_split=False,
    )
    output = case.poisoned_output()
    ops.cpu_attention_with_kv_cache(
        query=case.query,
        key_cache=keys,
        value_cache=values,
        output=output,
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        scale=case.scale,
        causal=True,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=torch.from_numpy(case.batch.block_table),
        softcap=0.0,
        scheduler_metadata=metadata,
        s_aux=None,
    )
    return output


OLDER = {
    StockBinary.AVX512: "torch.cpu._is_avx512_bf16_supported = lambda: False",
    StockBinary.AVX2: "torch.cpu._is_avx512_supported = lambda: False",
}
RUN_AS_OLDER = """
import sys
import pytest
import torch
torch.cpu._is_amx_tile_supported = lambda: False
{pretend}
from vllm_smart.kernels.cpu import stock
assert stock.BINARY is stock.StockBinary.{name}
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", {file!r}]))
"""
# Machines without AVX-512 compile other instructions, too.
AVX2_FEATURES = "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse4.1,+sse4.2,+xsave"


@pytest.mark.slow
@pytest.mark.parametrize("binary", OLDER, ids=lambda binary: binary.value)
def test_the_binaries_for_older_processors_have_the_same_bits(binary, tmp_path):
    if [*StockBinary].index(binary) >= [*StockBinary].index(stock.BINARY):
        pytest.skip(f"vLLM loads {stock.BINARY.value} here")
    script = RUN_AS_OLDER.format(pretend=OLDER[binary], name=binary.name, file=__file__)
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    if binary is StockBinary.AVX2:
        env |= {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2_FEATURES}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_binary_is_the_one_that_vllm_has_loaded():
    mapped = Path("/proc/self/maps").read_text().split()
    names = {Path(path).name.split(".")[0] for path in mapped if "/vllm/_C" in path}
    assert names == {stock.BINARY.value}


def store(kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: np.ndarray) -> None:
    """vLLM's own writer."""
    isa = stock.isa(key.dtype, key.shape[2])
    ops.cpu_attn_reshape_and_cache(key, value, *stock_views(kv_cache), torch.from_numpy(slots), isa)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_size", [64, 80])
def test_vllm_stores_keys_and_values_where_they_are_looked_for(head_size, dtype):
    kv_cache = torch.zeros(5, 3, 32, 2 * head_size, dtype=dtype)
    key, value = torch.randn(2, 40, 3, head_size).to(dtype)
    slots = np.random.default_rng(0).permutation(5 * 32)[:40]
    store(kv_cache, key, value, slots)
    keys, values = unpack_kv(kv_cache)
    assert torch.equal(keys[slots // 32, :, slots % 32], key)
    assert torch.equal(values[slots // 32, :, slots % 32], value)
    assert torch.equal(pack_kv(keys, values), kv_cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compaction_leaves_what_vllm_would_have_stored(dtype):
    key, value = torch.randn(2, 30, 3, 64).to(dtype)
    kept = np.array([1, 4, 5, 11, 29])
    compacted, expected = torch.zeros(2, 5, 3, 32, 2 * 64, dtype=dtype)
    store(compacted, key, value, 20 + np.arange(30))
    expected.copy_(compacted)
    store(expected, key[kept], value[kept], 20 + np.arange(len(kept)))
    CpuKVCompaction([compacted], OpenMPTeam()).run(20 + kept, 20 + np.arange(len(kept)))
    assert torch.equal(compacted, expected)


def test_heads_that_are_accepted_are_those_that_the_stock_kernel_has():
    from vllm_smart.refusals.model_limits import CPU_HEAD_SIZES

    def has_kernel(head_size: int) -> bool:
        kv_cache = torch.zeros(2, 1, 32, 2 * head_size)
        row, slot = torch.zeros(1, 1, head_size), torch.zeros(1, dtype=torch.int64)
        isa = "vec16" if head_size % 32 else "vec"
        try:
            ops.cpu_attn_reshape_and_cache(row, row, *stock_views(kv_cache), slot, isa)
        except RuntimeError:
            return False
        return True

    assert [size for size in range(16, 640, 16) if has_kernel(size)] == [*CPU_HEAD_SIZES]
