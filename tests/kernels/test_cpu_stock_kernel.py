"""Contracts with vLLM's CPU attention: the layout of its cache, and its results on chains."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.kernels.paged_trees import Case, Shape, random_case
from vllm_smart.kernels.cpu.openmp import OpenMPTeam
from vllm_smart.kernels.cpu_kv_compaction import CpuKVCompaction
from vllm_smart.kernels.cpu_tree_attention import CpuTreeAttention
from vllm_smart.kernels.tree_attention_reference import (
    pack_mask,
    split_kv_cache,
    tree_attention_reference,
)

ops = pytest.importorskip("vllm._custom_ops")

# float32 sums in another order, and vLLM's kernel approximates exp to about 1e-5.
FLOAT32_TOLERANCE = 5e-5
# Both kernels sum in float32; results round to neighbouring bfloat16 values at worst.
BFLOAT16_TOLERANCE = 2**-7
TOLERANCE = {torch.float32: FLOAT32_TOLERANCE, torch.bfloat16: BFLOAT16_TOLERANCE}


@pytest.fixture(scope="module", autouse=True)
def _vllm_on_cpu():
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("vLLM is not built for CPUs")
    current_platform.import_kernels()


def stock_views(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As vLLM's CPUAttentionBackendImpl makes them."""
    num_blocks, num_kv_heads, block_size, _ = kv_cache.shape
    keys, values = kv_cache.view(num_blocks, num_kv_heads, block_size * 2, -1).chunk(2, dim=2)
    return keys, values


def stock_attention(case: Case) -> torch.Tensor:
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
        isa="vec",
        enable_kv_split=True,
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


def random_chains(shape: Shape, contexts: list[int], rows: list[int]) -> Case:
    case = random_case(shape, contexts, rows)
    chains = [np.tri(count, max(rows), dtype=bool) for count in rows]
    batch = replace(case.batch, ancestor_mask=pack_mask(np.concatenate(chains)))
    # vLLM's kernel multiplies what lies beyond the sequence by zero: no NaN for it.
    return replace(case, batch=batch, kv_cache=case.kv_cache.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(num_heads=4, num_kv_heads=4, head_size=32, block_size=32),
        Shape(num_heads=9, num_kv_heads=3, head_size=64, block_size=128),
        Shape(num_heads=8, num_kv_heads=1, head_size=96, block_size=64),
        Shape(num_heads=8, num_kv_heads=2, head_size=128, block_size=128),
    ],
)
def test_a_chain_gives_what_vllm_gives(shape, dtype):
    shape = replace(shape, dtype=dtype)
    case = random_chains(shape, [0, 1, 127, 128, 1000], [61, 33, 1, 7, 20])
    expected, output, reference = stock_attention(case), case.poisoned_output(), case.poisoned_output()
    CpuTreeAttention().plan(case.batch).run(case.query, case.kv_cache, output, case.scale)
    tree_attention_reference(case.query, case.kv_cache, reference, case.batch, case.scale)
    torch.testing.assert_close(output, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(reference, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def store(kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: np.ndarray) -> None:
    """vLLM's own writer."""
    ops.cpu_attn_reshape_and_cache(key, value, *stock_views(kv_cache), torch.from_numpy(slots), "vec")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_vllm_stores_keys_transposed_and_values_in_rows(dtype):
    kv_cache = torch.zeros(5, 3, 32, 2 * 64, dtype=dtype)
    key, value = torch.randn(2, 40, 3, 64).to(dtype)
    slots = np.random.default_rng(0).permutation(5 * 32)[:40]
    store(kv_cache, key, value, slots)
    keys, values = split_kv_cache(kv_cache)
    assert torch.equal(keys[slots // 32, :, :, slots % 32], key)
    assert torch.equal(values[slots // 32, :, slots % 32], value)


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
