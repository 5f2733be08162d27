import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_smart.profiling.curve import CostCurve

points = st.dictionaries(st.integers(1, 300), st.floats(0.01, 100), min_size=1, max_size=20)


@given(points)
def test_a_curve_never_falls(measured):
    ms = CostCurve(list(measured.items())).at_each(np.arange(600))
    assert (np.diff(ms) >= -1e-9).all()


@given(points)
def test_one_lookup_and_many_agree(measured):
    curve = CostCurve(list(measured.items()))
    counts = np.array([0, 1, 7, 299, 300, 301, 1000])
    assert curve.at_each(counts).tolist() == [curve.at(int(count)) for count in counts]


@given(points)
def test_rising_measurements_are_met_exactly(measured):
    rising = dict(zip(sorted(measured), sorted(measured.values()), strict=True))
    curve = CostCurve(list(rising.items()))
    for count, ms in rising.items():
        assert curve.at(count) == pytest.approx(ms)


def test_stairs_stay_stairs():
    curve = CostCurve([(1, 10.0), (8, 10.0), (9, 20.0), (16, 20.0)])
    assert [curve.at(n) for n in (0, 5, 8, 9, 12, 16)] == [10, 10, 10, 20, 20, 20]


def test_a_dip_is_noise_and_is_averaged_away():
    curve = CostCurve([(1, 10.0), (2, 12.0), (3, 10.0), (4, 20.0)])
    assert [curve.at(n) for n in (1, 2, 3, 4)] == [10, 11, 11, 20]


def test_between_points_and_above_them_the_curve_is_a_line():
    curve = CostCurve([(10, 10.0), (20, 20.0)])
    assert curve.at(14) == pytest.approx(14.0)
    assert curve.at(40) == pytest.approx(40.0)


def test_a_last_stair_does_not_set_the_slope_alone():
    curve = CostCurve([(1, 1.0), (50, 50.0), (99, 50.0), (100, 60.0)])
    assert curve.at(200) == pytest.approx(60 + 100 * 10 / 50)


def test_no_counts_cost_nothing_to_look_up():
    assert CostCurve([(1, 1.0)]).at_each(np.zeros(0, np.int64)).shape == (0,)
