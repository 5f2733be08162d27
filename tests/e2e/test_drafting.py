"""Drafter bugs are silent, as the text stays right: only acceptance shows them."""

import pytest

from tests.e2e import scenarios

pytestmark = pytest.mark.vllm


def acceptance_length(result: dict) -> float:
    return 1 + result["num_accepted"] / result["num_trees"]


@pytest.mark.parametrize("method", scenarios.METHODS)
def test_siblings_of_the_first_choice_are_accepted_too(run_engine, method):
    by_rank = run_engine(f"tree {method}")["greedy"]["accepted_by_rank"]
    assert by_rank["0"] > by_rank["1"] > by_rank["2"] > 0


@pytest.mark.parametrize("method", scenarios.METHODS)
def test_a_chain_of_ours_is_accepted_exactly_as_vllms_own(run_engine, method):
    ours = run_engine(f"tree {method}")["chain greedy"]
    stock = run_engine(f"stock {method}")["greedy"]
    for name in (
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "vllm:spec_decode_num_accepted_tokens",
    ):
        expected = stock["counters"][name]
        actual = ours["counters"][name]
        if isinstance(expected, list):
            # Our engine counts up to its largest tree.
            actual, beyond = actual[: len(expected)], actual[len(expected) :]
            assert not any(beyond)
        assert actual == expected


@pytest.mark.parametrize("engine", ["tree eagle3", "tree-tight eagle3"])
def test_draft_nodes_are_counted_as_they_are_verified(run_engine, engine):
    """Not as they are chosen: requests end, and vLLM trims trees to budgets and grammars."""
    whole = (*scenarios.SAMPLING, "grammar", "mixed")
    runs = {name: run for name, run in run_engine(engine).items() if name in whole}
    for name, run in runs.items():
        counted, by_vllm = run["smart_counters"], run["counters"]["vllm:spec_decode_num_draft_tokens"]
        assert (name, counted["draft_nodes"]) == (name, by_vllm)
        assert counted["chosen_nodes"] >= counted["draft_nodes"] > 0, name
    chosen, verified = (
        sum(run["smart_counters"][name] for run in runs.values())
        for name in ("chosen_nodes", "draft_nodes")
    )
    assert chosen > verified


@pytest.mark.parametrize("control", scenarios.DRAFTER_CONTROLS)
def test_breaking_the_drafter_lowers_acceptance_and_nothing_else(run_engine, control):
    results = run_engine("tree eagle3")
    whole, broken = results[scenarios.WHOLE], results[control]
    assert [o[0]["token_ids"] for o in broken["outputs"]] == [
        o[0]["token_ids"] for o in whole["outputs"]
    ]
    assert acceptance_length(broken) < acceptance_length(whole)


@pytest.mark.parametrize("method", scenarios.METHODS)
def test_candidates_that_are_coupled_to_the_noise_are_accepted_more_often(run_engine, method):
    results = run_engine(f"tree {method}")
    coupled, uncoupled = results["temperature"], results[scenarios.UNCOUPLED]
    assert [o[0]["token_ids"] for o in uncoupled["outputs"]] == [
        o[0]["token_ids"] for o in coupled["outputs"][: scenarios.SHORT_RUNS]
    ]
    assert acceptance_length(coupled) > 1.25 * acceptance_length(uncoupled)


def test_noise_of_another_position_lowers_acceptance_and_nothing_else(run_engine):
    results = run_engine("tree eagle3")
    coupled, broken = results["temperature"], results[scenarios.NOISE_CONTROL]
    assert [o[0]["token_ids"] for o in broken["outputs"]] == [
        o[0]["token_ids"] for o in coupled["outputs"][: scenarios.SHORT_RUNS]
    ]
    assert acceptance_length(broken) < 0.7 * acceptance_length(coupled)


def test_a_drafter_that_is_the_target_is_right_at_any_temperature(run_engine):
    """Its first choice, after every node that is reached: seed, position and terms are the target's."""
    run = run_engine("itself")[scenarios.AT_TEMPERATURES]
    plain = run_engine("plain")[scenarios.AT_TEMPERATURES]["outputs"]
    assert [o[0]["token_ids"] for o in run["outputs"]] == [
        o[0]["token_ids"] for o in plain[: len(run["outputs"])]
    ]
    assert run["accepted_by_rank"]["0"] > 0.995 * run["num_accepted"]
    assert acceptance_length(run) > 4  # some trees are wide where the draft is not sure


def test_a_drafter_that_rests_reads_what_it_missed(run_engine):
    results = run_engine("tree eagle3")
    whole, rests = results[scenarios.WHOLE], results[scenarios.RESTS]
    assert rests["num_trees"] < 0.8 * whole["num_trees"]
    assert acceptance_length(rests) == pytest.approx(acceptance_length(whole), rel=0.06)


@pytest.mark.parametrize("method", scenarios.METHODS)
def test_trees_are_accepted_longer_than_chains_of_their_depth(run_engine, method):
    results = run_engine(f"tree {method}")
    assert acceptance_length(results["short greedy"]) > acceptance_length(results["chain greedy"])


def test_ngrams_and_the_drafter_speak_for_the_same_candidates_and_for_their_own(run_engine):
    by_source = run_engine("tree eagle3+ngram")["greedy"]["accepted_by_source"]
    assert by_source["0"] > 0  # the drafter alone
    assert by_source["1"] > 0  # n-grams alone
    assert by_source["2"] > by_source["1"]  # both


def test_ngrams_beside_a_drafter_are_accepted_longer_than_either_alone(run_engine):
    both, ngram, model = (
        acceptance_length(run_engine(f"tree {method}")[scenarios.WHOLE])
        for method in ("eagle3+ngram", "ngram", "eagle3")
    )
    assert both > 1.05 * model
    assert both > 1.2 * ngram


def test_ngrams_are_verified_while_the_drafter_rests(run_engine):
    results = run_engine("tree eagle3+ngram")
    whole, rests = results[scenarios.WHOLE], results[scenarios.RESTS]
    assert rests["num_trees"] > 0.8 * whole["num_trees"]  # of a drafter alone, a third
    assert rests["smart_counters"]["steps_without_drafting"] > 0.6 * rests["smart_counters"]["steps"]
    assert rests["accepted_by_source"]["1"] > whole["accepted_by_source"]["1"]


def test_a_drafter_that_steps_do_without_reads_what_it_missed(run_engine):
    results = run_engine("tree eagle3+ngram")
    whole, without = results[scenarios.WHOLE], results[scenarios.DOES_WITHOUT]
    assert [o[0]["token_ids"] for o in without["outputs"]] == [
        o[0]["token_ids"] for o in whole["outputs"]
    ]
    counted = without["smart_counters"]
    rests = counted["steps_without_drafting_by_reason"]["ngrams_suffice"]
    assert 0.5 * counted["steps"] < rests < 0.75 * counted["steps"]
    # What was missed is read with a later step's own.
    assert counted["rows_read"] == pytest.approx(whole["smart_counters"]["rows_read"], rel=0.1)


@pytest.mark.parametrize("method", scenarios.NGRAM_METHODS)
@pytest.mark.parametrize("control", scenarios.NGRAM_CONTROLS)
def test_breaking_ngrams_lowers_acceptance_and_nothing_else(run_engine, method, control):
    results = run_engine(f"tree {method}")
    whole, broken = results[scenarios.WHOLE], results[control]
    assert [o[0]["token_ids"] for o in broken["outputs"]] == [
        o[0]["token_ids"] for o in whole["outputs"]
    ]
    most = 0.8 if method == "ngram" else 0.97  # a drafter makes up for most of it
    assert broken["num_accepted"] < most * whole["num_accepted"]


def test_what_ngrams_name_is_counted(run_engine):
    counted = run_engine("tree ngram")["greedy"]["smart_counters"]
    assert counted["draft_nodes_by_source"]["ngram"] == counted["draft_nodes"] > 0
    assert counted["accepted_nodes_by_source"]["ngram"] == counted["accepted_nodes"] > 0
    assert counted["ngram_seconds"] > 0
    mixed = run_engine("tree eagle3+ngram")["greedy"]["smart_counters"]
    by_source = run_engine("tree eagle3+ngram")["greedy"]["accepted_by_source"]
    accepted = mixed["accepted_nodes_by_source"]
    named = {"model": by_source["0"], "ngram": by_source["1"], "both": by_source["2"]}
    assert accepted == {**named, "grammar": 0, "other": 0}
    assert mixed["draft_nodes_by_source"]["ngram"] > 0
