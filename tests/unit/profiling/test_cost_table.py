import numpy as np
import pytest
from pydantic import ValidationError

from vllm_smart.profiling import CostSamples, CostTable

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


def test_context_is_charged_at_the_measured_slope():
    table = CostTable(CostSamples(verify=VERIFY, context=((0, 10.0), (1000, 11.0), (2000, 12.0))))
    assert table.verify_ms(1, context_tokens=3000) == pytest.approx(13.0)
    assert table.verify_ms(np.array([1]), 3000).tolist() == pytest.approx([13.0])


@pytest.mark.parametrize("context", [(), ((1000, 10.0),), ((0, 10.0), (1000, 9.0))])
def test_context_that_was_not_measured_or_did_not_matter_is_free(context):
    assert CostTable(CostSamples(verify=VERIFY, context=context)).verify_ms(1, 10**6) == 10.0


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
