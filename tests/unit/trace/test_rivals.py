"""Rules of others on recorded candidates, and ours beside them."""

import pytest

from tests.unit.trace.hand_made import COSTS, decision, drafted, outcome, trace, verified
from tests.unit.trace.mixed import mixed
from vllm_smart.errors import TraceError
from vllm_smart.trace import compare, comparison
from vllm_smart.trace.rivals import make_rule


def chosen(rule: str, longest: int = 5, num_requests: int = 1) -> list[int]:
    of = mixed(longest=longest)
    return make_rule(rule, COSTS)(of, of.said, num_requests)


def test_fixed_ngram_takes_the_largest_shares_along_paths():
    assert chosen("fixed_ngram:3") == [2, 4, 7]
    assert sorted(chosen("fixed_ngram")) == [1, 2, 3, 4, 6, 7]  # the drafter's is none of them


def test_sssd_weighs_occurrences_by_the_match():
    # 0.15 and 0.45 below the root; then 0.15; 0.24, 0.12; 0.192.
    assert chosen("sssd:5") == [2, 4, 7, 1, 3]


def test_sssd_has_the_budget_of_its_batch():
    # 10 ms of a step are free tokens at 1 ms each, rounded up to the least ratio, 16.
    assert len(chosen("sssd", num_requests=1)) == 6
    assert len(chosen("sssd", num_requests=5)) == 2  # 16 / 5 tokens each, the known one included


def test_the_suffix_path_is_no_longer_than_its_match():
    assert chosen("suffix") == [1, 3]
    assert chosen("suffix:1") == [1]
    assert chosen("suffix", longest=1) == [2, 4]


def test_either_or_takes_the_drafters_chain_after_short_matches():
    assert chosen("either_or", longest=4) == [1, 3]
    assert chosen("either_or", longest=3) == [2, 5]
    assert chosen("either_or:1", longest=3) == [2]


@pytest.mark.parametrize("name", ["medusa", "suffix:x", "suffix:0", "either_or:-1", ""])
def test_an_unknown_rule_is_refused(name):
    with pytest.raises(TraceError, match=f"--against '{name}' is no rule. Allowed: fixed_ngram, sssd"):
        make_rule(name, COSTS)


def test_ours_takes_as_many_of_the_likeliest_nodes_of_all_trees():
    steps = trace(
        decision(0, mixed("a"), mixed("b", longest=3)),
        outcome(0, verified("a", (1,), (1,), 30), verified("b", (2, 4), (2, 4), 70)),
    )
    # `either_or` takes 1 and 3 of a, both right, and of b 2 and 5, of which 2 is right.
    (row,) = compare(steps, ["either_or"], COSTS)
    assert (row.num_trees, row.num_nodes, row.num_accepted) == (2, 4, 3)
    assert (row.ours_num_nodes, row.sources) == (4, "both")
    assert 0 <= row.ours_num_accepted <= 4
    assert "either_or" in list(comparison([row]))[-1]
    # All n-grams are no more than there are, and all that is right is among them.
    (every,) = compare(steps, ["fixed_ngram:200"], COSTS, "ngram")
    assert (every.num_nodes, every.num_accepted, every.ours_num_accepted) == (12, 5, 5)


def test_trees_whose_verdicts_are_not_all_known_are_not_judged():
    steps = trace(decision(0, mixed()), outcome(0, verified("a", (), (), 20)))
    with pytest.raises(TraceError, match="nothing to compare"):
        compare(steps, ["suffix"], COSTS)


def test_a_trace_without_n_grams_has_nothing_to_compare():
    steps = trace(decision(0, drafted()), outcome(0, verified("a", (1,), (1,), 7)))
    with pytest.raises(TraceError, match="has no n-grams"):
        compare(steps, ["suffix"], COSTS)
