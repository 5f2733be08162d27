"""CPU versions of our own steps, which no kernel of vLLM's has a counterpart of."""

import numpy as np
import pytest
import torch

TOLERANCE = 2e-6  # of probabilities: sums in another order


@pytest.mark.parametrize(("num_rows", "vocab_size", "num"), [(1, 7, 1), (3, 2048, 4), (5, 33, 8)])
def test_the_likeliest_tokens_are_those_of_torch(num_rows, vocab_size, num):
    from vllm_smart.kernels.top_tokens.cpu import top_candidates

    num = min(num, vocab_size)
    generator = torch.Generator().manual_seed(vocab_size)
    logits = 4 * torch.randn(num_rows, vocab_size, generator=generator)
    logits[:, 2] = -torch.inf
    temperature = torch.tensor([0.0, 0.7, 1.0, 2.0])
    slots = torch.arange(num_rows) % 4
    tokens, probs = top_candidates(logits, slots, temperature, num)
    scale = torch.where(temperature > 0, temperature, 1.0)[slots, None]
    expected, expected_tokens = torch.softmax(logits / scale, dim=-1).topk(num, dim=-1)
    assert (tokens == expected_tokens.numpy()).all()
    np.testing.assert_allclose(probs, expected.numpy(), rtol=1e-4, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kept_rows_are_the_first_of_each_tensor_side_by_side(dtype):
    from vllm_smart.kernels.keep_rows.cpu import keep_rows

    kept = torch.full((9, 8), -7.0, dtype=dtype)
    hidden_states = [torch.randn(4, width).to(dtype) for width in (3, 5)]
    places = np.array([8, 0, 3])
    keep_rows(kept, places, hidden_states)
    assert torch.equal(kept[places], torch.cat(hidden_states, dim=-1)[:3])
    assert (kept[[1, 2, 4, 5, 6, 7]] == -7.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widths", [(3,), (3, 5, 2)], ids=str)
def test_gathered_rows_are_those_of_each_tensor_side_by_side(dtype, widths):
    from vllm_smart.kernels.keep_rows.cpu import gather_rows

    hidden_states = [torch.randn(6, width).to(dtype) for width in widths]
    places = np.array([5, 0, 0, 3])
    gathered = gather_rows(hidden_states, places)
    assert gathered.dtype == dtype
    assert torch.equal(gathered, torch.cat(hidden_states, dim=-1)[places])
    assert gather_rows(hidden_states, places[:0]).shape == (0, sum(widths))
