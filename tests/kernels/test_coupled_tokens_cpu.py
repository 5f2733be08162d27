"""The draft's tokens by the target's noise, against plain torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_smart.kernels.coupled_tokens import SamplingTerms, reference
from vllm_smart.kernels.coupled_tokens.cpu import coupled_tokens
from vllm_smart.kernels.gumbel.cpu import gumbel_noise
from vllm_smart.kernels.kept_tokens.cpu import largest_of, least_kept

TOLERANCE = 1e-4  # of probabilities: scores of float32, times the gain
TIE = 1e-4  # between scores that rounding may take either way


def terms(num_slots: int, rng: np.random.Generator, **given_terms) -> SamplingTerms:
    parts = {
        "temperature": rng.choice([0.01, 0.3, 0.8, 1.0, 2.0], num_slots).astype(np.float32),
        "seed": rng.integers(-(2**63), 2**63, num_slots),
        "top_k": np.full(num_slots, 1 << 20, np.int32),
        "top_p": np.ones(num_slots, np.float32),
    }
    parts |= {name: np.resize(value, num_slots) for name, value in given_terms.items()}
    return SamplingTerms(**parts, draws_53_bits=False)


def spread_logits(num_rows: int, vocab_size: int, rng: np.random.Generator) -> torch.Tensor:
    logits = rng.normal(scale=rng.choice([0.5, 3.0, 8.0]), size=(num_rows, vocab_size))
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    return torch.from_numpy(logits.astype(np.float32))


def compare(logits, slots, positions, given_terms, count) -> None:
    noise = gumbel_noise(given_terms.seed[slots], positions, logits.shape[1], float64=False)
    tokens, probs = coupled_tokens(logits, slots, positions, given_terms, count)
    expected, expected_probs, scores = reference.coupled_tokens(
        logits, noise, slots, given_terms, count
    )
    np.testing.assert_allclose(probs, expected_probs.numpy(), rtol=1e-3, atol=TOLERANCE)
    found = scores.gather(1, torch.from_numpy(tokens)).numpy()
    wanted = scores.gather(1, expected).numpy()
    is_token = np.arange(count) < scores.isfinite().sum(dim=1, keepdim=True).numpy()  # then token 0
    np.testing.assert_allclose(found[is_token], wanted[is_token], rtol=1e-5, atol=TIE)
    assert not tokens[~is_token].any()
    assert not probs[~is_token].any()


@settings(max_examples=120, deadline=None)
@given(
    num_rows=st.integers(0, 4),
    vocab_size=st.sampled_from([1, 3, 33, 1024, 1025, 5000]),
    count=st.integers(1, 8),
    seed=st.integers(0, 1 << 30),
)
def test_tokens_are_the_best_by_logits_and_noise(num_rows, vocab_size, count, seed):
    rng = np.random.default_rng(seed)
    given_terms, slots = terms(5, rng), rng.integers(0, 5, num_rows)
    positions = rng.integers(0, 1 << 20, num_rows)
    compare(spread_logits(num_rows, vocab_size, rng), slots, positions, given_terms, count)


@settings(max_examples=120, deadline=None)
@given(
    top_k=st.sampled_from([1, 2, 7, 40, 1 << 20]),
    top_p=st.sampled_from([0.001, 0.3, 0.9, 0.999, 1.0]),
    vocab_size=st.sampled_from([1, 40, 1025, 20_000]),
    seed=st.integers(0, 1 << 30),
)
def test_tokens_that_top_k_or_top_p_leave_out_are_not_named(top_k, top_p, vocab_size, seed):
    rng = np.random.default_rng(seed)
    given_terms = terms(3, rng, top_k=np.int32(top_k), top_p=np.float32(top_p))
    logits, slots = spread_logits(3, vocab_size, rng), np.arange(3)
    compare(logits, slots, np.arange(3), given_terms, 4)


@settings(max_examples=60, deadline=None)
@given(
    top_k=st.sampled_from([1, 64, 65, 300, 19_000, 1 << 20]),
    top_p=st.sampled_from([0.01, 0.5, 0.99, 1.0]),
    kind=st.sampled_from(["few stand out", "flat", "equal", "few levels", "mostly ruled out"]),
    seed=st.integers(0, 1 << 30),
)
def test_the_last_token_kept_is_found_whatever_logits_look_like(top_k, top_p, kind, seed):
    rng, size = np.random.default_rng(seed), 20_001
    logits = rng.normal(size=size).astype(np.float32)
    if kind == "few stand out":
        logits[rng.integers(0, size, 30)] += 20
    elif kind == "equal":
        logits[:] = 1.5
    elif kind == "few levels":
        logits = np.round(logits)
    elif kind == "mostly ruled out":
        logits[rng.random(size) < 0.999] = -np.inf
    scale = np.float32(1 / rng.choice([0.3, 1.0, 1.5]))
    ordered = np.sort(logits[logits > -np.inf])[::-1].astype(np.float64)
    kept = ordered[ordered >= ordered[min(top_k, len(ordered)) - 1]]  # all that are as large, too
    mass = np.exp((kept - kept[0]) * scale)
    before = np.cumsum(mass) - mass
    in_doubt = np.abs(before / mass.sum() - top_p) < 1e-5  # float32 may take it either way
    found = least_kept(logits, largest_of(logits), scale, top_k, np.float32(top_p))
    if top_p == 1:
        assert found in (kept[-1], -np.inf)
        assert (logits[logits > -np.inf] >= found).sum() == len(kept)
    else:
        last = kept[before < top_p * mass.sum()][-1]
        assert found == last or found in kept[in_doubt] or last in kept[in_doubt]


def test_draws_of_53_bits_are_told_from_their_higher_ones():
    rng = np.random.default_rng(0)
    given_terms = terms(4, rng, temperature=np.float32(1.0))
    given_terms = SamplingTerms(**{**vars(given_terms), "draws_53_bits": True})
    logits, slots, positions = spread_logits(4, 2048, rng), np.arange(4), np.arange(4)
    noise = gumbel_noise(given_terms.seed, positions, 2048, float64=True)
    expected, _, _ = reference.coupled_tokens(logits, noise, slots, given_terms, 4)
    assert (coupled_tokens(logits, slots, positions, given_terms, 4)[0] == expected.numpy()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_any_type_and_stride_do(dtype):
    rng = np.random.default_rng(1)
    given_terms, slots = terms(2, rng), np.arange(2)
    logits = spread_logits(2, 3000, rng).to(dtype)
    strided = torch.full((2, 6000), torch.inf, dtype=dtype)[:, ::2]
    strided.copy_(logits)
    whole, parts = (coupled_tokens(of, slots, slots, given_terms, 4) for of in (logits, strided))
    np.testing.assert_array_equal(whole[0], parts[0])
    compare(logits, slots, slots, given_terms, 4)


def test_rows_without_a_number_name_nothing_of_worth():
    rng = np.random.default_rng(2)
    logits = torch.full((3, 2000), -torch.inf)
    logits[1] = torch.nan
    logits[2] = torch.inf
    given_terms = terms(3, rng, top_k=np.int32(9), top_p=np.float32(0.5))
    tokens, probs = coupled_tokens(logits, np.arange(3), np.arange(3), given_terms, 4)
    assert ((tokens >= 0) & (tokens < 2000)).all()
    assert not (probs > 0).any()
