"""The few shapes of growth on the device."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_smart.growth.sizes import GrowthSizes


@settings(deadline=None)
@given(
    max_num_reqs=st.integers(1, 1024),
    width=st.integers(1, 9),
    num_reqs=st.integers(1, 1024),
    share=st.floats(0, 1),
)
def test_padding_fits_and_never_more_than_doubles(max_num_reqs, width, num_reqs, share):
    num_reqs = min(num_reqs, max_num_reqs)
    sizes = GrowthSizes(max_num_reqs, max_num_reqs * width, width)
    padded = sizes.reqs(num_reqs)
    assert num_reqs <= padded <= min(2 * num_reqs, max_num_reqs)
    num_rows = max(1, int(share * num_reqs * width))
    rows = sizes.rows(padded, num_rows)
    assert num_rows <= rows <= padded * width
    assert rows <= 2 * max(num_rows, padded)
    captured = set(sizes.captured_levels())
    assert len(captured) <= 9 * 5
    if padded <= 256 and rows <= 512:
        assert (padded, rows) in captured
        assert padded in set(sizes.captured_reqs())


def test_rows_never_exceed_what_the_drafter_takes():
    sizes = GrowthSizes(max_num_reqs=48, most_rows=64, width=8)
    assert sizes.reqs(33) == 48
    assert sizes.rows(48, 50) == 64
    assert max(rows for _, rows in sizes.captured_levels()) == 64
