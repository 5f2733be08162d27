"""Which requests' noise is known, what shapes their draft, and that others' rows stay what they are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vllm_smart.kernels.coupled_tokens.cpu import coupled_tokens
from vllm_smart.kernels.top_tokens.cpu import top_candidates, top_tokens

pytestmark = pytest.mark.vllm

MAX_REQS, VOCAB, CHILDREN = 4, 3000, 3


class Processor:
    """Forbids a token for a request, and notes the positions that it is asked about."""

    def __init__(self, slot: int, token: int) -> None:
        self.slot, self.token, self.positions = slot, token, []
        self.use_logit_bias = self.use_penalty = np.arange(MAX_REQS) == slot
        self.num_bad_words = SimpleNamespace(np=self.use_penalty.astype(np.int32))

    def apply(self, logits: torch.Tensor, context) -> torch.Tensor:
        assert not context.expanded_local_pos.any()
        rows = np.flatnonzero(context.idx_mapping_np == self.slot)
        self.positions += context.pos[rows].tolist()
        logits[rows, self.token] = -torch.inf
        return logits


def sampler(use_flashinfer: bool = False) -> SimpleNamespace:
    def tensor(value, dtype) -> SimpleNamespace:
        return SimpleNamespace(np=np.full(MAX_REQS, value, dtype))

    states = SimpleNamespace(
        temperature=tensor(0.8, np.float32),
        seeds=SimpleNamespace(np=np.arange(MAX_REQS) + 7),
        top_k=tensor(VOCAB, np.int32),
        top_p=tensor(1.0, np.float32),
    )
    return SimpleNamespace(
        sampling_states=states,
        use_fp64_gumbel=False,
        use_flashinfer=use_flashinfer,
        logits_processors=[Processor(slot, token) for slot, token in ((1, 50), (2, 60), (3, 70))],
    )


def target_noise(**settings):
    from vllm_smart.adapter.drafter.target_noise import TargetNoise

    return TargetNoise(sampler(**settings))


def test_requests_that_sample_are_coupled_until_another_takes_the_slot():
    from vllm import SamplingParams

    noise = target_noise()
    assert noise.add_request(2, SamplingParams(temperature=0.7, top_p=0.9))
    assert not noise.add_request(1, SamplingParams(temperature=0.0))
    assert noise.is_coupled.tolist() == [False, False, True, False]
    assert not noise.add_request(2, None)  # samples nothing
    assert not noise.is_coupled.any()


def test_draws_that_nobody_knows_beforehand_are_not_coupled_to():
    from vllm import SamplingParams

    noise = target_noise(use_flashinfer=True)
    assert not noise.add_request(0, SamplingParams(temperature=0.7, top_p=0.9))
    assert not noise.add_request(0, SamplingParams(temperature=0.7, top_k=5))
    assert noise.add_request(0, SamplingParams(temperature=0.7, top_k=5, seed=3))
    assert noise.add_request(0, SamplingParams(temperature=0.7))


def test_logits_are_processed_for_who_asks_for_it():
    noise, logits = target_noise(), torch.zeros(4, VOCAB)
    logits[:, [50, 60, 70]] = 99.0
    before = logits.clone()
    slots, position = np.array([0, 1, 1, 2]), np.array([5, 8, 9, 3])
    tokens, _ = noise.candidates_after(logits, slots, position, CHILDREN)
    assert set(tokens[0]) == {50, 60, 70}
    named = [set(row) & {50, 60, 70} for row in tokens[1:]]
    assert named == [{60, 70}, {60, 70}, {50, 70}]
    assert [of.positions for of in noise._sampler.logits_processors] == [[8, 9], [3], []]
    assert torch.equal(logits[0], before[0])


@pytest.mark.parametrize("num_rows", [5, 40])  # few logits, and more than that
def test_a_mixed_level_has_of_each_row_what_it_has_alone(num_rows):
    from vllm_smart.adapter.drafter.model_source import ModelSource

    noise = target_noise()
    noise._sampler.logits_processors = [Processor(-1, 0)] * 3
    noise.is_coupled[[0, 3]] = True
    rng = np.random.default_rng(num_rows)
    logits = torch.from_numpy(rng.normal(size=(num_rows, VOCAB), scale=3).astype(np.float32))
    temperature = torch.tensor([0.8, 0.0, 0.6, 0.8])
    slots, position = rng.integers(0, MAX_REQS, num_rows), rng.integers(0, 99, num_rows)
    host = SimpleNamespace(
        device=torch.device("cpu"), vocab_size=VOCAB, compute_draft_logits=lambda rows, _: rows
    )
    source = ModelSource.__new__(ModelSource)
    source._host, source._context = host, SimpleNamespace(temperature=temperature)
    token, prob = source._likeliest_samples(noise, logits, slots, position, CHILDREN, None)

    of_rows = torch.from_numpy(slots)
    if num_rows == 5:
        expected = top_candidates(logits, of_rows, temperature, CHILDREN)
    else:
        expected = [each.numpy() for each in top_tokens(logits, temperature[of_rows], CHILDREN)]
    is_coupled = noise.is_coupled[slots]
    assert is_coupled.any()
    assert not is_coupled.all()
    for found, wanted in zip((token, prob), expected, strict=True):
        assert found[~is_coupled].tolist() == wanted[~is_coupled].tolist()
    rows = np.flatnonzero(is_coupled)
    coupled = coupled_tokens(logits[rows], slots[rows], position[rows], noise.terms, CHILDREN)
    for found, wanted in zip((token, prob), coupled, strict=True):
        assert found[rows].tolist() == wanted.tolist()
