"""Without a seed tokens differ from run to run, but their distribution must not; nor bfloat16 text."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from tests.e2e import scenarios

pytestmark = pytest.mark.vllm
# bfloat16 keeps 8 bits: logits around 10 are known to 1/32, a few roundings add up.
NEAR_TIE = 0.25


def test_bf16_text_is_that_of_plain_decoding(run_engine):
    """On CPUs to the last bit; on GPUs near ties may go either way."""
    plain, tree = run_engine("plain-bf16")["greedy"], run_engine("tree-bf16 eagle3")["greedy"]
    assert tree["num_branching_steps"] > 0
    assert tree["num_moved"] > 0
    if not torch.cuda.is_available():
        for expected, actual in zip(plain["outputs"], tree["outputs"], strict=True):
            assert actual[0]["token_ids"] == expected[0]["token_ids"]
        return
    for expected, actual in zip(plain["outputs"], tree["outputs"], strict=True):
        want, have = np.array(expected[0]["token_ids"]), np.array(actual[0]["token_ids"])
        differs = np.flatnonzero(want != have)
        if len(differs):
            # After the first difference they continue different texts.
            logprobs = expected[0]["logprobs"][differs[0]]
            gap = logprobs[str(want[differs[0]])][0] - logprobs[str(have[differs[0]])][0]
            assert 0 <= gap < NEAR_TIE, f"token {differs[0]}: logit gap {gap}"


def test_bf16_accepts_as_much_as_float32(run_engine):
    bf16, float32 = run_engine("tree-bf16 eagle3")["greedy"], run_engine("tree eagle3")["greedy"]
    lengths = [1 + r["num_accepted"] / r["num_trees"] for r in (bf16, float32)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.05)


SMALLEST_P = 0.001
NUM_BINS = 24  # the likeliest tokens; the rest share a bin


def test_unseeded_samples_follow_the_targets_distribution(run_engine):
    plain = samples(run_engine("plain-many")["many"])
    run = run_engine("tree-many eagle3")["many"]
    tree = samples(run)
    assert len(tree) == len(plain) == scenarios.NUM_SAMPLES
    assert run["num_accepted"] > scenarios.NUM_SAMPLES / 10
    for position in range(plain.shape[1]):
        p = same_distribution(plain[:, position], tree[:, position])
        assert p > SMALLEST_P, f"position {position}: p = {p}"
    # Pairs of neighbours: the distribution given the token before.
    for position in range(plain.shape[1] - 1):
        pairs = [s[:, position] * 100_000 + s[:, position + 1] for s in (plain, tree)]
        assert same_distribution(*pairs) > SMALLEST_P, f"positions {position}, {position + 1}"


def test_the_comparison_of_distributions_notices_one_token_in_twenty(run_engine):
    plain = samples(run_engine("plain-many")["many"])[:, 2]
    skewed = plain.copy()
    skewed[::20] = np.bincount(plain).argmax()
    assert same_distribution(plain, skewed) < SMALLEST_P


def samples(result: dict) -> np.ndarray:
    """[num_samples, num_tokens] token ids."""
    return np.array([c["token_ids"] for output in result["outputs"] for c in output])


def same_distribution(first: np.ndarray, second: np.ndarray) -> float:
    """p value of the chi-square test that two samples come from one distribution."""
    values, counts = np.unique(np.concatenate((first, second)), return_counts=True)
    likeliest = values[np.argsort(-counts)][:NUM_BINS]
    table = np.array([[(s == v).sum() for v in likeliest] for s in (first, second)])
    rest = np.array([len(first), len(second)]) - table.sum(axis=1)
    table = np.column_stack((table, rest))
    return chi2_contingency(table[:, table.sum(axis=0) >= 10]).pvalue
