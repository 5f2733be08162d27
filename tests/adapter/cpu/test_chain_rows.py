"""Rows of chains have the bits of rows that decode alone, under whatever hides keys from them."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.vllm
HEADS, KV_HEADS, HEAD_SIZE, BLOCK = 4, 2, 64, 32
# More rows than vLLM's kernel takes at a time, over more keys than fit its tile.
CONTEXT, NUM_DRAFTS, PROMPT = 2000, 11, 5
NUM_BLOCKS = -(-(CONTEXT + NUM_DRAFTS + 1) // BLOCK)  # of a request


@dataclass
class Batch:
    """The fields of vLLM's `InputBatch` that attention's metadata are made from."""

    num_reqs: int
    num_draft_tokens_per_req: np.ndarray
    num_scheduled_tokens: np.ndarray
    query_start_loc_np: np.ndarray
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    seq_lens_cpu_upper_bound: torch.Tensor
    is_prefilling_np: np.ndarray
    idx_mapping_np: np.ndarray


def batch() -> Batch:
    """A chain, a request without drafts, and a prompt."""
    rows = np.array([NUM_DRAFTS + 1, 1, PROMPT])
    start = np.concatenate(([0], np.cumsum(rows))).astype(np.int32)
    seq_lens = torch.tensor([CONTEXT + NUM_DRAFTS + 1, 70, PROMPT], dtype=torch.int32)
    return Batch(
        num_reqs=3,
        num_draft_tokens_per_req=np.array([NUM_DRAFTS, 0, 0]),
        num_scheduled_tokens=rows,
        query_start_loc_np=start,
        query_start_loc=torch.from_numpy(start),
        seq_lens=seq_lens,
        seq_lens_cpu_upper_bound=seq_lens.clone(),
        is_prefilling_np=np.array([False, False, True]),
        idx_mapping_np=np.array([4, 0, 2]),
    )


def attention(of: Batch, tables: torch.Tensor, dtype: torch.dtype, case: dict) -> torch.Tensor:
    """What vLLM's kernel makes of a batch, with the same keys at every call."""
    from vllm import _custom_ops as ops

    from vllm_smart.attention import stock

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    cache = torch.zeros(3 * NUM_BLOCKS, KV_HEADS, BLOCK, 2 * HEAD_SIZE, dtype=dtype)
    num_slots = cache.shape[0] * BLOCK
    stock.store(
        cache, random(num_slots, KV_HEADS, HEAD_SIZE), random(num_slots, KV_HEADS, HEAD_SIZE), 0
    )
    num_rows = int(of.query_start_loc_np[-1])
    query = random(num_rows, HEADS, HEAD_SIZE)
    output = torch.full_like(query, float("nan"))
    window = case.get("window", 0) - 1
    metadata = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(of.seq_lens),
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_SIZE,
        seq_lens=of.seq_lens,
        dtype=dtype,
        query_start_loc=of.query_start_loc,
        causal=True,
        sliding_window_size=window,
        isa="vec",
        enable_kv_split=False,
    )
    keys, values = cache.view(cache.shape[0], KV_HEADS, 2 * BLOCK, -1).chunk(2, dim=2)
    ops.cpu_attention_with_kv_cache(
        query=query,
        key_cache=keys,
        value_cache=values,
        output=output,
        query_start_loc=of.query_start_loc,
        seq_lens=of.seq_lens,
        scale=HEAD_SIZE**-0.5,
        causal=True,
        alibi_slopes=torch.linspace(0.01, 0.1, HEADS) if case.get("biases") else None,
        sliding_window=window,
        block_table=tables,
        softcap=case.get("softcap", 0.0),
        scheduler_metadata=metadata,
        s_aux=random(HEADS) if case.get("sinks") else None,
    )
    return output


def tables() -> torch.Tensor:
    shuffled = np.random.default_rng(0).permutation(3 * NUM_BLOCKS).reshape(3, NUM_BLOCKS)
    return torch.from_numpy(shuffled.astype(np.int32))


@pytest.fixture(autouse=True)
def one_thread():
    """Several share out the rows of a request, and keys of a row, as they come."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CASES = {
    "full": {},
    "window": {"window": 16},
    "sinks": {"sinks": True},
    "window and sinks": {"window": 128, "sinks": True},
    "soft cap": {"softcap": 20.0},
    "biases": {"biases": True},
}


def each_row(of: Batch, of_reqs: torch.Tensor) -> tuple[Batch, torch.Tensor]:
    from vllm_smart.adapter.chain_rows import each_row_alone

    rows, (of_rows,) = each_row_alone(of, (of_reqs,))
    return rows, of_rows


def alone(seq_len: int) -> Batch:
    """As many rows as the batch has, each of a request that decodes with `seq_len` tokens."""
    num = int(batch().query_start_loc_np[-1])
    seq_lens = torch.full((num,), seq_len, dtype=torch.int32)
    start = np.arange(num + 1, dtype=np.int32)
    return replace(
        batch(), query_start_loc_np=start, query_start_loc=torch.from_numpy(start), seq_lens=seq_lens
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_row_of_a_chain_has_the_bits_of_a_row_that_decodes_alone(case, dtype):
    of_reqs = tables()
    out = attention(*each_row(batch(), of_reqs), dtype, case)
    same_keys = of_reqs[:1].repeat(len(out), 1)
    for row in range(NUM_DRAFTS + 1):
        expected = attention(alone(CONTEXT + row + 1), same_keys, dtype, case)[row]
        assert torch.equal(out[row], expected)
    whole = attention(batch(), of_reqs, dtype, case)
    assert torch.equal(out[NUM_DRAFTS + 1 :], whole[NUM_DRAFTS + 1 :])  # the requests without drafts


@pytest.mark.parametrize("case", ["full", "sinks"])
def test_the_rows_of_one_request_have_other_bits(case):
    of_reqs, dtype = tables(), torch.float32
    out = attention(*each_row(batch(), of_reqs), dtype, CASES[case])
    together = attention(batch(), of_reqs, dtype, CASES[case])
    assert not torch.equal(out, together)
    torch.testing.assert_close(out, together)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_row_that_sees_a_token_more_or_less_is_noticed(case):
    of_reqs, dtype = tables(), torch.bfloat16
    rows, of_rows = each_row(batch(), of_reqs)
    out = attention(rows, of_rows, dtype, case)
    for wrong in (-1, 1):
        broken = attention(replace(rows, seq_lens=rows.seq_lens + wrong), of_rows, dtype, case)
        assert not torch.equal(out[: NUM_DRAFTS + 1], broken[: NUM_DRAFTS + 1])
