import pytest

from tests.unit.scheduler.random_costs import table
from vllm_smart.config import GrowthLimits
from vllm_smart.scheduler import explain, explain_line, explain_table, knee

LIMITS = GrowthLimits(node_budget=16, depth=4, width=4, children=3)
BANDWIDTH_BOUND = table({1: 10.0, 512: 10.0}, {1: 0.1})
COMPUTE_BOUND = table({1: 10.0, 512: 5120.0}, {1: 0.1})


def test_batch_sizes_double_up_to_the_largest():
    assert [row.batch_size for row in explain(BANDWIDTH_BOUND, LIMITS, 20)] == [1, 2, 4, 8, 16]


def test_where_tokens_are_free_trees_are_full_and_pay():
    row = next(explain(BANDWIDTH_BOUND, LIMITS))
    assert row.num_draft_tokens == 16
    assert row.depth == 4
    assert row.speedup == pytest.approx(row.acceptance_length * row.plain_ms / row.predicted_ms)
    assert row.speedup > 2


def test_where_every_token_costs_in_full_nothing_is_drafted():
    row = next(explain(COMPUTE_BOUND, LIMITS))
    assert (row.num_draft_tokens, row.depth, row.acceptance_length) == (0, 0, 1.0)
    assert row.speedup == 1.0


def test_the_table_has_a_line_per_batch_size_and_the_log_one_line():
    lines = list(explain_table(BANDWIDTH_BOUND, 8))
    assert len(lines) == 4
    assert lines[0].startswith("batch    1:")
    assert "\n" not in explain_line(explain(BANDWIDTH_BOUND, LIMITS, 8))


def test_the_knee_is_the_largest_batch_that_gains_as_much():
    dearer = table({1: 10.0, 8: 11.0, 64: 60.0, 512: 480.0}, {1: 0.3, 64: 2.0})
    at = knee(dearer, 1.1, 32)
    assert 1 < at < 32
    assert knee(dearer, 1.5, 32) < at
    speedups = {row.batch_size: row.speedup for row in explain(dearer, max_batch_size=32)}
    assert all((speedup >= 1.1) <= (size <= at) for size, speedup in speedups.items())
    assert knee(BANDWIDTH_BOUND, 1.1, 32) == 32
    assert knee(COMPUTE_BOUND, 1.1, 32) == 0
