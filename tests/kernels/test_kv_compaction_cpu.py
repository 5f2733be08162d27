import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_smart.errors import UnsupportedError
from vllm_smart.kernels.cpu.openmp import OpenMPTeam
from vllm_smart.kernels.kv_compaction.cpu import CpuKVCompaction
from vllm_smart.kernels.kv_compaction.reference import compact_kv as compact_kv_reference


def random_caches(num_layers: int, dtype: torch.dtype, block_size: int = 32) -> list[torch.Tensor]:
    """Layers of one allocation, so that their blocks are strided; no two elements alike."""
    shape = (7, num_layers, 3, block_size, 2 * 32)
    elements = torch.arange(torch.Size(shape).numel(), dtype=torch.int32)
    if dtype != torch.float32:
        elements = elements.to(torch.int16)
    return list(elements.view(dtype).view(shape).unbind(1))


def bits(caches: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(caches).contiguous().view(torch.uint8)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@settings(max_examples=20, deadline=None)
@given(num_moves=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
def test_random_moves_that_overlap_match_the_reference(dtype, num_threads, num_moves, seed):
    rng = np.random.default_rng(seed)
    sources = rng.integers(0, 7 * 32, num_moves)
    targets = rng.choice(7 * 32, num_moves, replace=False)
    expected, caches = random_caches(4, dtype), random_caches(4, dtype)
    compact_kv_reference(expected, sources, targets)
    CpuKVCompaction(caches, OpenMPTeam(num_threads)).run(sources, targets)
    assert torch.equal(bits(caches), bits(expected))


def test_one_object_serves_many_steps():
    rng = np.random.default_rng(0)
    expected, caches = random_caches(2, torch.bfloat16, 128), random_caches(2, torch.bfloat16, 128)
    compaction = CpuKVCompaction(caches, OpenMPTeam())
    for num_moves in (3, 0, 100, 1):
        sources, targets = (rng.choice(7 * 128, num_moves, replace=False) for _ in range(2))
        compact_kv_reference(expected, sources, targets)
        compaction.run(sources, targets)
        assert torch.equal(bits(caches), bits(expected))


@pytest.mark.parametrize(
    "caches",
    [
        [torch.zeros(2, 3, 32, 64), torch.zeros(2, 3, 32, 128)],
        [torch.zeros(2, 3, 32, 64, dtype=torch.float64)],
    ],
    ids=["different", "dtype"],
)
def test_caches_without_a_kernel_are_refused(caches):
    with pytest.raises(UnsupportedError, match="KV compaction"):
        CpuKVCompaction(caches, OpenMPTeam())
