import numpy as np
import pytest
from pydantic import ValidationError

from vllm_smart.profiling import Context, CostSamples, CostTable

VERIFY = ((1, 10.0), (8, 10.0), (9, 20.0))


def test_each_part_of_a_step_has_its_cost():
    table = CostTable.from_samples(
        CostSamples(verify=VERIFY, draft=((1, 1.0), (9, 2.0)), read=((1, 0.5), (9, 1.0)))
    )
    assert table.verify_ms(8) == 10.0
    assert table.verify_ms(np.array([1, 9])).tolist() == [10.0, 20.0]
    assert table.draft_ms(5) == pytest.approx(1.5)
    # Nine rows of the drafter alone, and what candidates add to a row.
    assert table.read_ms(9, 1) == pytest.approx(1.0 + 0.5)


def in_context(rows_and_ms) -> CostTable:
    """Two requests of so many rows each, with nothing and with 1000 tokens before them."""
    points = [
        (2, rows, length, ms)
        for rows, plain, full in rows_and_ms
        for length, ms in ((0, plain), (1000, full))
    ]
    return CostTable(CostSamples(verify=VERIFY, context=tuple(points)))


def test_context_is_charged_once_where_reading_it_is_what_costs():
    # 2000 tokens of context: 2 ms, whatever the rows.
    table = in_context([(1, 10.0, 12.0), (8, 20.0, 22.0)])
    assert table.verify_ms(1, Context(500, 500)) == pytest.approx(10.5)
    assert table.verify_ms(np.array([1, 9]), Context(500, 500)).tolist() == pytest.approx([10.5, 20.5])


def test_context_is_charged_by_row_where_computing_is_what_costs():
    # 1000 tokens before each of 2 and of 16 rows: 0.001 ms per row and token.
    table = in_context([(1, 10.0, 12.0), (8, 20.0, 36.0)])
    assert table.verify_ms(9, Context(500, 500)) == pytest.approx(20.0 + 9 * 0.5)


@pytest.mark.parametrize(
    "rows_and_ms",
    [[], [(1, 10.0, 9.0)], [(1, 10.0, 9.0), (8, 20.0, 19.0)]],
)
def test_context_that_was_not_measured_or_did_not_matter_is_free(rows_and_ms):
    assert in_context(rows_and_ms).verify_ms(1, Context(10**6, 10**6)) == 10.0


@pytest.mark.parametrize(("full", "expected"), [((12.0, 21.0), 11.0), ((9.5, 36.0), 11.0)])
def test_no_slope_is_negative(full, expected):
    table = in_context([(1, 10.0, full[0]), (8, 20.0, full[1])])
    assert 10.0 <= table.verify_ms(1, Context(1000, 1000)) <= expected


def test_a_step_does_not_wait_for_what_a_drafter_reads_beside_it():
    beside = CostTable(CostSamples(verify=((1, 5.0),), draft=((1, 2.0), (4, 3.0)), beside=True))
    assert beside.read_ms(8, 2) == 0.0
    assert beside.draft_ms(4) == 3.0


def test_drafting_that_was_not_measured_is_free():
    table = CostTable(CostSamples(verify=VERIFY))
    assert table.draft_ms(100) == table.read_ms(100, 1) == 0.0


def test_reading_costs_as_much_as_drafting_where_it_was_not_measured():
    table = CostTable(CostSamples(verify=VERIFY, draft=((1, 1.0), (9, 2.0))))
    assert table.read_ms(9, 3) == table.draft_ms(9)


@pytest.mark.parametrize(
    "samples",
    [
        {"verify": ()},
        {"verify": ((1, 0.0),)},
        {"verify": ((1, float("nan")),)},
        {"verify": ((-1, 1.0),)},
        {"verify": VERIFY, "read": ((1, -1.0),)},
        {"verify": VERIFY, "speed": 1.0},
    ],
)
def test_impossible_samples_are_refused(samples):
    with pytest.raises(ValidationError):
        CostSamples(**samples)
