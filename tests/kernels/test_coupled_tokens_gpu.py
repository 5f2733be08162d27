"""The draft's tokens by the target's noise on the device, against plain torch and the noise of CPUs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, examples
from tests.kernels.random_growth import on_device
from vllm_smart.kernels.coupled_tokens import SamplingTerms, reference
from vllm_smart.kernels.coupled_tokens.device import DeviceNoise
from vllm_smart.kernels.gumbel.cpu import gumbel_noise
from vllm_smart.kernels.top_tokens.gpu import top_tokens

BLOCK = 4096  # of the vocabulary, in the kernel
TOLERANCE = 2e-3  # of probabilities, and of scores: noise is drawn to about 1e-4
NUM_REQS = 4


def known(num_rows: int, rng: np.random.Generator, draws_53_bits: bool = False):
    """Terms by request, and the noise of rows: requests 0 and 2 are coupled."""
    terms = SamplingTerms(
        temperature=rng.choice([0.3, 0.8, 1.3], NUM_REQS).astype(np.float32),
        seed=rng.integers(-(2**63), 2**63, NUM_REQS),
        top_k=np.full(NUM_REQS, 1 << 20, np.int32),
        top_p=np.ones(NUM_REQS, np.float32),
        draws_53_bits=draws_53_bits,
    )
    root, level, req = rng.integers(0, 1 << 20, NUM_REQS), 3, rng.integers(0, NUM_REQS, num_rows)
    is_coupled = np.array([1, 0, 1, 0])
    arrays = terms.seed, root, is_coupled, np.array([level]), req
    device = DeviceNoise(*map(on_device, arrays), draws_53_bits)
    return terms, device, root[req] + level, req, is_coupled[req] > 0


@examples(25)
@given(
    num_rows=st.integers(1, 5),
    vocab_size=st.integers(1, 20) | st.integers(1, 2 * BLOCK),
    count=st.sampled_from([1, 4, 16]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    seed=st.integers(0, 2**32 - 1),
)
def test_coupled_rows_are_the_best_by_noise_and_others_what_they_are_without(
    num_rows, vocab_size, count, dtype, seed
):
    rng = np.random.default_rng(seed)
    terms, noise, position, req, is_coupled = known(num_rows, rng)
    logits = torch.from_numpy(rng.normal(scale=3.0, size=(num_rows, vocab_size)))
    logits[torch.from_numpy(rng.random(logits.shape) < 0.1)] = -torch.inf
    logits = logits.to(DEVICE, dtype)
    temperature = on_device(terms.temperature[req])
    tokens, probs = (each.cpu() for each in top_tokens(logits, temperature, count, noise))
    plain_tokens, plain_probs = (each.cpu() for each in top_tokens(logits, temperature, count))
    assert tokens[~is_coupled].tolist() == plain_tokens[~is_coupled].tolist()
    assert torch.equal(
        probs[~is_coupled].nan_to_num(7), plain_probs[~is_coupled].nan_to_num(7)
    )  # a row may be ruled out as a whole

    of = gumbel_noise(terms.seed[req], position, vocab_size, float64=False)
    expected, expected_probs, scores = reference.coupled_tokens(logits.cpu(), of, req, terms, count)
    has_some = scores.isfinite().any(dim=1).numpy()
    rows = np.flatnonzero(is_coupled & has_some)
    found, wanted = (scores.gather(1, each)[rows] for each in (tokens, expected))
    # Later places hold token 0.
    is_token = torch.arange(count) < scores.isfinite().sum(dim=1, keepdim=True)[rows]
    torch.testing.assert_close(found[is_token], wanted[is_token], rtol=1e-3, atol=TOLERANCE)
    given_probs, wanted_probs = probs[rows], expected_probs[rows]
    torch.testing.assert_close(given_probs, wanted_probs, rtol=2e-2, atol=TOLERANCE)
    assert not given_probs[~is_token].any()


@pytest.mark.parametrize("draws_53_bits", [False, True])
def test_noise_alone_ranks_tokens_as_the_targets_sampler_draws_it(draws_53_bits):
    rng = np.random.default_rng(5)
    terms, noise, position, req, is_coupled = known(32, rng, draws_53_bits)
    logits = torch.zeros(32, 3 * BLOCK, device=DEVICE)
    tokens, _ = top_tokens(logits, on_device(terms.temperature[req]), 4, noise)
    of = gumbel_noise(terms.seed[req], position, logits.shape[1], draws_53_bits)
    expected = of.topk(4, dim=1).indices
    same = (tokens.cpu() == expected)[is_coupled].float().mean()
    assert same > 0.97  # ties of what is known to 1e-4
    assert (tokens.cpu() == torch.arange(4))[~is_coupled].all()
