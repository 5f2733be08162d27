"""The likeliest tokens by kernels, against the plain version and a stable sort."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from vllm_smart.kernels.top_tokens.cpu import top_tokens as top_tokens_reference
from vllm_smart.kernels.top_tokens.gpu import top_tokens

BLOCK = 4096  # of the vocabulary, in the kernel
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Relative: the plain version rounds scaled logits and their logsumexp, of up to 100 here, to float32
# before it subtracts them. Absolute: probabilities that no policy tells from 0.
RTOL, ATOL = 3e-5, 1e-9


def run(logits: torch.Tensor, temperature: torch.Tensor, count: int):
    """Tokens and probabilities, from memory that torch has filled with NaN and the largest integers."""
    torch.use_deterministic_algorithms(True)
    try:
        tokens, probs = top_tokens(logits, temperature, count)
    finally:
        torch.use_deterministic_algorithms(False)
    assert tokens.shape == probs.shape == (len(logits), count)
    assert (tokens.dtype, probs.dtype) == (torch.int64, torch.float32)
    return tokens, probs


def check(logits: torch.Tensor, temperature: torch.Tensor, count: int) -> None:
    tokens, probs = run(logits, temperature, count)
    # The plain version may name others of equal logits; their probabilities are the same.
    in_order = logits.float().sort(dim=1, descending=True, stable=True).indices[:, :count]
    beyond = (0, count - in_order.shape[1])
    assert tokens.tolist() == torch.nn.functional.pad(in_order, beyond).tolist()
    _, plain_probs = top_tokens_reference(logits, temperature, count)
    torch.testing.assert_close(probs, plain_probs, rtol=RTOL, atol=ATOL)


def greedy(num_rows: int) -> torch.Tensor:
    return torch.zeros(num_rows, device=DEVICE)


@examples(25)
@given(
    num_rows=st.integers(1, 4),
    vocab_size=st.integers(1, 20) | st.integers(1, 3 * BLOCK),
    spare=st.sampled_from([0, 1, 64]),
    count=st.sampled_from([1, 4, 7, 16]),
    dtype=st.sampled_from(DTYPES),
    step=st.sampled_from([0.0, 2.0]),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_rows_are_read_as_by_the_plain_version(
    num_rows, vocab_size, spare, count, dtype, step, masked, seed
):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(num_rows, vocab_size + spare, generator=generator)
    if step:  # so few values that most of the best are equal
        logits = (logits / step).round() * step
    is_masked = torch.rand(logits.shape, generator=generator) < masked
    is_masked[torch.arange(num_rows), torch.randint(vocab_size, (num_rows,), generator=generator)] = (
        False
    )
    logits[is_masked] = -torch.inf
    logits[:, vocab_size:] = 1000.0  # not of the vocabulary
    temperature = torch.tensor([0.0, 0.3, 2.0, 1.0])
    temperature = temperature[torch.randint(4, (num_rows,), generator=generator)]
    check(logits.to(DEVICE, dtype)[:, :vocab_size], temperature.to(DEVICE), count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_vocabularies_are_read_to_their_ends(dtype):
    logits = torch.randn(1, 64 * BLOCK, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    logits[0, [0, -1]] = 9.0
    check(logits, torch.tensor([2.0], device=DEVICE), 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_that_differ_in_their_last_bit_are_told_apart(dtype, sign):
    values = 1 + torch.finfo(dtype).eps * torch.arange(100, dtype=torch.float64)
    places = torch.randperm(BLOCK + 100, generator=torch.Generator().manual_seed(1))[:100]
    logits = torch.full((1, BLOCK + 100), -10.0)
    logits[0, places] = sign * values.float()
    check(logits.to(DEVICE, dtype), greedy(1), 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_logits_the_lower_token_comes_first_whatever_its_block(dtype):
    tied = [5, 6, BLOCK - 1, BLOCK, 2 * BLOCK + 1]
    logits = torch.full((3, 2 * BLOCK + 3), -1.0, dtype=dtype, device=DEVICE)
    logits[0, tied] = 2.0
    logits[2] = -0.0
    logits[2, tied] = 0.0
    tokens, probs = run(logits, greedy(3), 8)
    assert tokens.tolist() == [[*tied, 0, 1, 2], list(range(8)), list(range(8))]
    assert (probs[1:] == probs[1:, :1]).all()


@pytest.mark.parametrize("top", [run, top_tokens_reference])
def test_ruled_out_tokens_and_places_beyond_the_vocabulary_have_probability_0(top):
    logits = torch.full((2, 5), -torch.inf, device=DEVICE)
    logits[:, 3] = 1.0
    logits[0, 1] = 2.0
    tokens, probs = top(logits, greedy(2), 7)
    assert tokens[:, :2].tolist() == [[1, 3], [3, tokens[1, 1].item()]]
    assert sorted(tokens[0, :5].tolist()) == sorted(tokens[1, :5].tolist()) == list(range(5))
    assert tokens[:, 5:].tolist() == [[0, 0], [0, 0]]
    expected = torch.tensor([[2.0, 1.0], [1.0, -torch.inf]], device=DEVICE).softmax(dim=1)
    torch.testing.assert_close(probs[:, :2], expected, rtol=RTOL, atol=ATOL)
    assert (probs[:, 2:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_that_are_ruled_out_as_a_whole_change_no_probability(dtype):
    logits = torch.full((2, 3 * BLOCK), -torch.inf, dtype=dtype, device=DEVICE)
    # So low that nothing may be taken relative to 0 instead.
    logits[0, 1] = logits[1, BLOCK + 1] = -201.0
    logits[0, 2 * BLOCK] = logits[1, BLOCK] = -200.0
    tokens, probs = run(logits, greedy(2), 3)
    assert tokens.tolist() == [[2 * BLOCK, 1, 0], [BLOCK, BLOCK + 1, 0]]
    expected = torch.tensor([-200.0, -201.0, -torch.inf], device=DEVICE).softmax(dim=0).expand(2, 3)
    torch.testing.assert_close(probs, expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top", [run, top_tokens_reference])
def test_rows_without_a_softmax_have_no_probabilities_and_leave_others_alone(top, dtype):
    vocab_size, count = 2 * BLOCK + 3, 6
    logits = torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(2)).to(dtype)
    logits[1, BLOCK + 7] = torch.nan
    logits[2, 0] = torch.tensor(torch.nan).copysign(torch.tensor(-1.0))  # below -inf, if by its bits
    logits[3] = -torch.inf
    logits[4] = torch.nan
    logits = logits.to(DEVICE)
    tokens, probs = top(logits, greedy(6), count)
    assert ((tokens >= 0) & (tokens < vocab_size)).all()
    assert probs[1:5].isnan().all()
    others = torch.tensor([0, 5], device=DEVICE)
    expected, in_order = logits[others].float().softmax(dim=1).topk(count, dim=1)
    torch.testing.assert_close(probs[others], expected, rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(
        logits[others].gather(1, tokens[others]), logits[others].gather(1, in_order)
    )


def test_infinite_logits_name_tokens_of_the_vocabulary():
    logits = torch.zeros(1, 7, device=DEVICE)
    logits[0, [2, 4]] = torch.inf
    tokens, _ = run(logits, greedy(1), 4)
    assert tokens.tolist() == [[2, 4, 0, 1]]


@pytest.mark.parametrize("top", [run, top_tokens_reference])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 2.0])
def test_probabilities_are_a_softmax_at_the_temperature_of_the_row(top, temperature):
    logits = torch.tensor([[0.5, 3.0, -2.0, 1.0]], device=DEVICE)
    tokens, probs = top(logits, torch.tensor([temperature], device=DEVICE), 3)
    assert tokens.tolist() == [[1, 3, 0]]
    expected = (logits.double() / (temperature or 1.0)).softmax(dim=1)[:, [1, 3, 0]]
    torch.testing.assert_close(probs.double(), expected, rtol=RTOL, atol=ATOL)
