"""Ratios of repeated measurements: values, intervals, and what cancels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_smart.bench.statistics import Estimate, geometric_mean, median_ratio

ratios = st.lists(st.floats(0.1, 1000), min_size=2, max_size=9)


def _rng():
    return np.random.default_rng(0)


def test_the_ratio_is_the_median_over_rounds():
    assert median_ratio([0.5, 3, 0.04], _rng()).value == 0.5


@given(ratios)
def test_the_interval_stays_within_the_extremes(of_rounds):
    ratio = median_ratio(of_rounds, _rng())
    assert min(of_rounds) <= ratio.low <= ratio.high <= max(of_rounds)


def test_noise_widens_the_interval():
    quiet = median_ratio([2, 2.02, 1.98, 2, 2], _rng())
    noisy = median_ratio([2, 2.8, 1.4, 2.4, 1.6], _rng())
    assert noisy.high - noisy.low > 5 * (quiet.high - quiet.low)


def test_one_round_has_no_interval():
    ratio = median_ratio([2], _rng())
    assert ratio.value == 2.0
    assert math.isnan(ratio.low)
    assert math.isnan(ratio.high)


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="no rounds"):
        median_ratio([], _rng())


def test_the_geometric_mean_of_a_doubling_and_a_halving_is_one():
    twice, half = Estimate(2.0, np.full(3, 2.0)), Estimate(0.5, np.full(3, 0.5))
    mean = geometric_mean([twice, half])
    assert (mean.low, mean.value, mean.high) == pytest.approx((1.0, 1.0, 1.0))


def test_the_geometric_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        geometric_mean([])
