from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.kernels.device import DEVICE
from tests.kernels.paged_trees import Case, Shape, random_case
from vllm_smart.kernels.tree_attention import (
    LayerRules,
    PagedTreeBatch,
    TreeAttentionBatch,
    pack_mask,
    unpack_kv,
)
from vllm_smart.kernels.tree_attention.gpu import num_splits_for, tree_attention
from vllm_smart.kernels.tree_attention.reference import tree_attention as tree_attention_reference

# Both sides sum in float32 but in another order; outputs are averages of values around 1.
FLOAT32_TOLERANCE = 1e-5
# Probabilities are rounded before they meet the values, and the result is: an ulp each.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-6, torch.float16: 2**-9}

CONTEXTS = [0, 1, 31, 64, 200]
ROWS = [33, 9, 1, 17, 5]
# What splits, masks and softcaps are tried on: the interpreter takes its time.
SMALL = Shape(num_heads=4, num_kv_heads=2, head_size=32)
FEW_CONTEXTS, FEW_ROWS = [1, 200, 31], [17, 9, 1]


def device_cache(case: Case) -> torch.Tensor:
    """The cache of `case` as vLLM's CUDA backends lay it out."""
    return torch.cat(unpack_kv(case.kv_cache), dim=-1).to(DEVICE)


def device_batch(batch: TreeAttentionBatch, num_splits: int = 1) -> PagedTreeBatch:
    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(DEVICE, torch.int32)

    return PagedTreeBatch(
        query_start_loc=on_device(batch.query_start_loc),
        seq_lens=on_device(batch.seq_lens),
        tail_lens=on_device(batch.tail_lens),
        block_table=on_device(batch.block_table),
        ancestor_mask=on_device(batch.ancestor_mask.view(np.int32)),
        max_query_len=int(np.diff(batch.query_start_loc).max(initial=1)),
        num_splits=num_splits,
    )


def run(
    case: Case, batch: PagedTreeBatch, softcap: float = 0.0, cache: torch.Tensor | None = None
) -> torch.Tensor:
    output = case.poisoned_output().to(DEVICE)
    cache = device_cache(case) if cache is None else cache
    tree_attention(case.query.to(DEVICE), cache, output, batch, case.scale, softcap)
    return output.cpu()


def expect(case: Case, output: torch.Tensor, softcap: float = 0.0) -> None:
    expected = case.poisoned_output()
    rules = LayerRules(softcap=softcap)
    tree_attention_reference(case.query, case.kv_cache, expected, case.batch, case.scale, rules)
    rounding = ROUNDING[output.dtype]
    torch.testing.assert_close(
        output,
        expected,
        atol=FLOAT32_TOLERANCE + rounding,
        rtol=FLOAT32_TOLERANCE + rounding,
        equal_nan=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_size", "block_size"),
    [(3, 3, 32, 16), (6, 2, 80, 48), (8, 1, 64, 32), (2, 1, 256, 16)],
)
def test_a_ragged_batch_matches_the_reference(dtype, num_heads, num_kv_heads, head_size, block_size):
    case = random_case(Shape(num_heads, num_kv_heads, head_size, block_size, dtype), CONTEXTS, ROWS)
    output = run(case, device_batch(case.batch))
    expect(case, output)
    assert not output.isnan().any()


@pytest.mark.parametrize("num_splits", [2, 4, 16])
def test_splitting_the_keys_changes_nothing(num_splits):
    case = random_case(SMALL, FEW_CONTEXTS, FEW_ROWS)
    expect(case, run(case, device_batch(case.batch, num_splits)))


@pytest.mark.parametrize("earlier", [1, 31, 64, 100])
def test_a_draft_level_sees_its_ancestors_among_earlier_slots(earlier):
    case = random_case(SMALL, FEW_CONTEXTS, FEW_ROWS, earlier)
    expect(case, run(case, device_batch(case.batch)))


@pytest.mark.parametrize("num_splits", [1, 4])
def test_an_empty_tail_is_causal(num_splits):
    case = random_case(SMALL, FEW_CONTEXTS, FEW_ROWS)
    chains = [np.tri(count, max(FEW_ROWS), dtype=bool) for count in FEW_ROWS]
    chain = replace(case, batch=replace(case.batch, ancestor_mask=pack_mask(np.concatenate(chains))))
    batch = device_batch(case.batch, num_splits)  # the trees' masks, which must not be read
    causal = replace(batch, tail_lens=torch.zeros_like(batch.tail_lens))
    expect(chain, run(chain, causal))


def test_trees_and_causal_requests_share_a_launch():
    case = random_case(Shape(), CONTEXTS, ROWS)
    chains = np.concatenate([np.tri(count, 64, dtype=bool) for count in ROWS])
    masks = case.batch.ancestor_mask.copy()
    causal_rows = np.repeat(np.arange(len(ROWS)) % 2 == 1, ROWS)
    masks[causal_rows] = pack_mask(chains)[causal_rows][:, : masks.shape[1]]
    mixed = replace(case, batch=replace(case.batch, ancestor_mask=masks))
    batch = device_batch(case.batch)
    tails = batch.tail_lens.clone()
    tails[1::2] = 0
    expect(mixed, run(mixed, replace(batch, tail_lens=tails)))


@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_softcap_matches_the_reference(softcap):
    case = random_case(SMALL, FEW_CONTEXTS, FEW_ROWS)
    expect(case, run(case, device_batch(case.batch, 2), softcap), softcap)


def test_mask_bits_beyond_the_tail_mean_nothing():
    case = random_case(Shape(), [37, 0], [9, 50])
    visible = np.random.default_rng(0).random((59, 64)) < 0.5
    visible[np.arange(59), np.concatenate([np.arange(9), np.arange(50)])] = True
    case = replace(case, batch=replace(case.batch, ancestor_mask=pack_mask(visible)))
    expect(case, run(case, device_batch(case.batch)))


@pytest.mark.parametrize("num_splits", [1, 2])
def test_rows_after_the_last_request_are_left_alone(num_splits):
    case = random_case(Shape(), [20, 7], [9, 3])
    padded = replace(case, query=torch.cat([case.query, torch.full_like(case.query, float("nan"))]))
    output = run(padded, device_batch(case.batch, num_splits), cache=device_cache(case))
    expect(case, output[: len(case.query)])
    assert output[len(case.query) :].isnan().all()


def test_requests_without_rows_are_no_work():
    """As at the end of a batch that was padded to a captured size."""
    case = random_case(Shape(), [5, 9], [3, 4])
    batch = device_batch(case.batch)
    starts = torch.cat([batch.query_start_loc, batch.query_start_loc[-1:].repeat(3)])
    nothing = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    padded = replace(
        batch,
        query_start_loc=starts,
        seq_lens=torch.cat([batch.seq_lens, nothing]),
        tail_lens=torch.cat([batch.tail_lens, nothing]),
        block_table=torch.cat([batch.block_table, batch.block_table, batch.block_table]),
        max_query_len=batch.max_query_len + 30,
    )
    expect(case, run(case, padded))


def test_strided_tensors_give_the_same_output():
    case = random_case(Shape(), CONTEXTS, ROWS)
    batch, cache = device_batch(case.batch), device_cache(case)
    whole = run(case, batch, cache=cache)
    packed = torch.cat([case.query, case.query, case.query], dim=1)[:, 6:12]
    # Slots before heads, two layers in one allocation, as vLLM may place them.
    other = torch.full_like(cache, float("nan"))
    strided = torch.stack([other, cache], dim=1).transpose(2, 3).contiguous().transpose(2, 3)[:, 1]
    assert not strided.is_contiguous()
    assert torch.equal(run(replace(case, query=packed), batch, cache=strided), whole)


def test_one_launch_replays_with_other_trees():
    """What a captured graph does: the same tensors and sizes, other contents."""
    first, second = (random_case(Shape(), [40, 7], [9, 9], seed=seed) for seed in (1, 2))
    batch = device_batch(first.batch, 2)
    expect(first, run(first, batch))
    other = device_batch(second.batch)
    for name in ("ancestor_mask", "tail_lens", "seq_lens", "query_start_loc"):
        getattr(batch, name).copy_(getattr(other, name))
    batch.block_table.copy_(other.block_table)
    expect(second, run(second, batch))


def test_a_small_batch_with_long_contexts_is_split_and_a_large_one_is_not():
    assert num_splits_for(1, 8, 33, 4, 32768, 132) == 8
    assert num_splits_for(1, 8, 1, 4, 128, 132) == 1
    assert num_splits_for(64, 8, 33, 4, 32768, 132) == 1
