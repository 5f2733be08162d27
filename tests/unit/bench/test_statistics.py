"""Ratios of repeated measurements: values, intervals, and what cancels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_smart.bench.statistics import Estimate, geometric_mean, median_ratio

speeds = st.lists(st.floats(0.1, 1000), min_size=2, max_size=9)


def _rng():
    return np.random.default_rng(0)


def test_the_ratio_is_the_median_of_those_within_a_round():
    assert median_ratio([1, 30, 4], [2, 10, 100], _rng()).value == 0.5


@given(speeds)
def test_anything_over_itself_is_one_for_sure(values):
    ratio = median_ratio(values, values, _rng())
    assert (ratio.low, ratio.value, ratio.high) == (1.0, 1.0, 1.0)


@given(speeds, st.floats(0.1, 10))
def test_what_slows_a_whole_round_cancels(values, factor):
    ratio = median_ratio([factor * value for value in values], values, _rng())
    assert ratio.low == pytest.approx(factor)
    assert ratio.high == pytest.approx(factor)


@given(speeds, speeds)
def test_the_interval_stays_within_the_extremes(ours, baseline):
    size = min(len(ours), len(baseline))
    ours, baseline = ours[:size], baseline[:size]
    ratio = median_ratio(ours, baseline, _rng())
    slack = 1 + 1e-9
    assert min(ours) / max(baseline) <= ratio.low * slack
    assert ratio.low <= ratio.high <= max(ours) / min(baseline) * slack


def test_noise_widens_the_interval():
    quiet = median_ratio([10, 10.1, 9.9, 10, 10], [5, 5, 5, 5, 5], _rng())
    noisy = median_ratio([10, 14, 7, 12, 8], [5, 5, 5, 5, 5], _rng())
    assert noisy.high - noisy.low > 5 * (quiet.high - quiet.low)


def test_one_round_has_no_interval():
    ratio = median_ratio([2], [1], _rng())
    assert ratio.value == 2.0
    assert math.isnan(ratio.low)
    assert math.isnan(ratio.high)


@pytest.mark.parametrize(("ours", "baseline"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_cannot_be_paired_is_refused(ours, baseline):
    with pytest.raises(ValueError, match="cannot be compared"):
        median_ratio(ours, baseline, _rng())


def test_the_geometric_mean_of_a_doubling_and_a_halving_is_one():
    twice, half = Estimate(2.0, np.full(3, 2.0)), Estimate(0.5, np.full(3, 0.5))
    mean = geometric_mean([twice, half])
    assert (mean.low, mean.value, mean.high) == pytest.approx((1.0, 1.0, 1.0))


def test_the_geometric_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        geometric_mean([])
