"""What plain decoding would have taken."""

import pytest

from vllm_smart.profiling import (
    NO_CONTEXT,
    CorrectedCost,
    Correction,
    CostSamples,
    CostTable,
    StepShape,
    StepTime,
    plain_ms_of,
)

TABLE = CostTable(CostSamples(verify=((1, 10.0), (2, 11.0), (8, 17.0), (64, 73.0)), draft=((1, 2.0),)))
COST = CorrectedCost(TABLE, Correction(step_ms=1.0, drafting_ms=0.5))


def time(measured_ms, num_tokens, num_requests, has_prefill=False, **drafting):
    shape = StepShape(num_tokens, NO_CONTEXT, num_requests, branches=False, **drafting)
    return StepTime(None, measured_ms, shape, has_prefill)


def test_a_plain_step_is_its_own_measure_however_wrong_the_costs_are():
    assert plain_ms_of(time(99.0, 2, 2), 1.0, 0, COST) == 99.0


def test_a_step_with_trees_is_worth_as_many_plain_ones_as_it_emitted_tokens():
    verifies = time(20.0, 8, 2, read_rows=2, candidate_rows=2)
    assert plain_ms_of(verifies, 2.5, 6, COST) == pytest.approx(2.5 * (11.0 + 1.0))


def test_a_step_that_drafts_and_verifies_nothing_costs_more_than_plain():
    drafts = time(16.0, 2, 2, read_rows=2, candidate_rows=2)
    assert plain_ms_of(drafts, 1.0, 0, COST) == pytest.approx(12.0)


def test_of_a_step_with_prompts_what_speculation_added_is_taken_off():
    shape = {"read_rows": 40, "candidate_rows": 2, "level_rows": (1,)}
    step = time(80.0, 64, 2, has_prefill=True, **shape)
    drafting_ms = 0.5 + TABLE.read_ms(40, 2) + TABLE.draft_ms(1)
    nodes_ms = TABLE.verify_ms(64) - TABLE.verify_ms(58)
    expected = 80.0 - drafting_ms - nodes_ms + 0.5 * 12.0
    assert plain_ms_of(step, 1.5, 6, COST) == pytest.approx(expected)


def test_no_time_is_less_than_nothing():
    step = time(1.0, 64, 2, has_prefill=True, read_rows=40, candidate_rows=2)
    assert plain_ms_of(step, 1.0, 0, COST) == 0.0
