"""What is counted of steps, and under which labels."""

import numpy as np
import pytest

from vllm_smart.kernels.evidence import BOTH, MODEL, NGRAM
from vllm_smart.overlap.drafts import Miss
from vllm_smart.profiling import Correction
from vllm_smart.reports.families import ERROR_EDGES, FAMILIES, NUM_VALUES, batch_place
from vllm_smart.reports.stats import StepStats, views
from vllm_smart.scheduler import Explanation, Rest
from vllm_smart.tree import TreeBatch


@pytest.fixture
def stats():
    return StepStats.of_process()


def two_trees() -> TreeBatch:
    """Of requests with 3 and 1 draft nodes, as wide as 4."""

    def rows(first, second, dtype=np.int32):
        return np.array([first, second], dtype)

    return TreeBatch(
        token=rows([1, 2, 3, 4], [1, 2, 9, 9], np.int64),
        parent=rows([-1, 0, 0, 1], [-1, 0, 0, 0]),
        depth=rows([0, 1, 1, 2], [0, 1, 9, 9]),
        rank=rows([0, 0, 1, 0], [0, 0, 0, 0]),
        path_prob=rows([1, 0.5, 0.25, 0.25], [1, 0.75, 0.5, 0.5], np.float32),
        draft_prob=rows([1, 0.5, 0.25, 0.5], [1, 0.75, 0.5, 0.5], np.float32),
        source=rows([0, MODEL, NGRAM, BOTH], [0, MODEL, NGRAM, NGRAM]),
        num_nodes=np.array([4, 2], np.int32),
    )


def test_families_have_a_place_each_and_all_names_differ():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    parts = views(np.arange(NUM_VALUES))
    flat = np.concatenate([parts[family.name].reshape(-1) for family in FAMILIES])
    assert (flat == np.arange(NUM_VALUES)).all()


@pytest.mark.parametrize(
    ("requests", "place"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (63, 6), (64, 7), (5000, 7)]
)
def test_batches_are_counted_by_the_power_of_two_below(requests, place):
    assert batch_place(requests) == place


def test_nodes_are_counted_by_depth_and_by_who_named_them(stats):
    trees = two_trees()
    path = np.array([[0, 1, 3], [0, -1, -1]])
    stats.record_walk(trees, trees.is_node() & (trees.path_prob > 0), path)
    counted = stats.counters()
    assert counted["trees"] == 2
    nobody_else = {"grammar": 0, "other": 0}
    by_source = counted["draft_nodes_by_source"]
    assert (counted["draft_nodes"], by_source) == (4, {"model": 2, "ngram": 1, "both": 1} | nobody_else)
    assert counted["draft_nodes_by_depth"]["1"] == 3
    assert counted["draft_nodes_by_depth"]["2"] == 1
    assert counted["accepted_nodes_by_source"] == {"model": 1, "ngram": 0, "both": 1} | nobody_else
    assert counted["accepted_nodes_by_depth"]["2"] == 1
    assert counted["expected_nodes"] == pytest.approx(0.5 + 0.25 + 0.25 + 0.75)


def test_rows_that_are_no_drafts_are_not_counted(stats):
    trees = two_trees()
    is_draft = trees.is_node()
    is_draft[0, 2] = False
    stats.record_walk(trees, is_draft, np.array([[0], [0]]))
    assert stats.counters()["draft_nodes"] == 3


def test_deep_nodes_count_as_the_deepest(stats):
    trees = two_trees()
    trees.depth[0, 3] = 40
    stats.record_walk(trees, trees.is_node(), np.array([[0], [0]]))
    assert stats.counters()["draft_nodes_by_depth"]["16"] == 1


def test_trees_and_rests_are_counted_by_batch(stats):
    stats.record_trees(two_trees(), num_read=5, num_levels=3, used_levels=2, num_requests=2)
    stats.record_rest(5, Rest.PLAIN_IS_FASTER)
    stats.record_rest_of_drafter(Rest.NO_CANDIDATES)
    counted = stats.counters()
    assert (counted["steps"], counted["steps_by_batch"]["2"]) == (2, 1)
    assert counted["step_requests_by_batch"] == {
        **dict.fromkeys(counted["steps_by_batch"], 0),
        "2": 2,
        "4": 5,
    }
    assert (counted["chosen_nodes"], counted["chosen_trees"], counted["chosen_tree_levels"]) == (
        4,
        2,
        3,
    )
    assert (counted["draft_levels"], counted["unused_draft_levels"], counted["rows_read"]) == (3, 1, 5)
    assert counted["steps_without_speculation"] == 1
    by_reason = counted["steps_without_drafting_by_reason"]
    assert by_reason["plain_is_faster"] == by_reason["no_candidates"] == 1
    assert sum(counted["step_draft_nodes"]) == 2
    assert counted["step_draft_nodes"][:4] == [1, 0, 0, 1]  # 0 nodes; 3 or 4


def test_misses_are_counted_by_what_they_were_for(stats):
    stats.record_lookups(2, [Miss.LATE, Miss.NOT_IN_TREE, Miss.LATE])
    stats.record_overlap(num_levels=3, num_nodes=7, busy_s=0.5, wait_s=0.25, num_restarts=1)
    counted = stats.counters()
    assert counted["overlap_hits"] == 2
    assert {r: n for r, n in counted["overlap_misses_by_reason"].items() if n} == {
        "late": 2,
        "not_in_tree": 1,
    }
    numbers = ("levels", "nodes", "busy_seconds", "wait_seconds", "restarts")
    assert [counted[f"overlap_{name}"] for name in numbers] == [3, 7, 0.5, 0.25, 1]


def test_errors_keep_their_sign(stats):
    stats.record_prediction(0.75, 1.0)
    stats.record_prediction(1.25, 1.0)
    over, under = views(stats._values)["step_time_error_ratio"]
    assert (over[0].sum(), under[0].sum()) == (1, 1)
    assert over[1].sum() == under[1].sum() == pytest.approx(0.25)
    counts = stats.counters()["step_time_error_ratio"]
    assert dict(zip(ERROR_EDGES, counts[:-1], strict=True))[0.3] == sum(counts) == 2
    assert stats.counters()["predicted_step_seconds"] == pytest.approx(2.0)


def test_gauges_say_what_holds_at_present(stats):
    stats.show_gate(True, 0.3)
    stats.show_gate(False, -0.1)
    stats.show_correction(Correction((0.5, 1.5), draft=2.0, step_ms=3.0))
    rows = [
        Explanation(batch_size=2**i, depth=1, num_draft_tokens=9.0 - i, acceptance_length=2.0,
                    predicted_ms=1.0, plain_ms=1.0, speedup=2.0)
        for i in range(9)
    ]  # fmt: skip
    stats.show_table(rows)
    shown = views(stats._values)
    assert shown["drafter_runs"] == 0
    assert shown["drafting_gain_ratio"] == -0.1
    assert shown["cost_correction_ratio"].tolist() == [1.0, 2.0, 1.0]
    assert shown["cost_correction_seconds"][0] == 0.003
    assert shown["table_nodes"].tolist() == [0, 9, 8, 7, 6, 5, 4, 3]
    assert "drafter_runs" not in stats.counters()


def test_reset_forgets_everything(stats):
    stats.record_rest(1, Rest.PROMPTS)
    stats.reset()
    assert not stats._values.any()


def test_nodes_of_sources_without_a_name_are_counted_together(stats):
    trees = two_trees()
    trees.source[0, 1] = 7
    stats.record_walk(trees, trees.is_node() & (trees.path_prob > 0), np.array([[0], [0]]))
    counted = stats.counters()
    assert counted["draft_nodes_by_source"]["other"] == 1
    assert counted["draft_nodes"] == 4


def test_what_grammars_say_of_nodes_is_counted(stats):
    stats.record_verdicts(8, 1)
    stats.record_unmasked(has_failed=False)
    stats.record_unmasked(has_failed=True)
    counted = stats.counters()
    assert counted["grammar_nodes_by_verdict"] == {"allowed": 7, "forbidden": 1}
    assert counted["trees_without_grammar_by_reason"] == {"compiling": 1, "failed": 1}
