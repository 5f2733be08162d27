"""Structured output: plain decoding's text, of drafts that keep to the grammar."""

import json

import jsonschema
import pytest

from tests.e2e import scenarios
from tests.e2e.test_lossless import METHODS, tokens
from tests.tool_calls.schemas import schemas

pytestmark = pytest.mark.vllm
JSON = scenarios.JSON
KNOWN_NOTHING, BEHIND = scenarios.GRAMMAR_CONTROLS


def forbidden_share(run: dict) -> float:
    """Of the nodes that were verified of requests with grammars."""
    verdicts = run["smart_counters"]["grammar_nodes_by_verdict"]
    return verdicts["forbidden"] / sum(verdicts.values())


def accepted_per_tree(run: dict) -> float:
    return run["smart_counters"]["accepted_nodes"] / run["smart_counters"]["trees"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("run", [JSON, f"chain {JSON}", f"smart {JSON}"])
def test_tool_calls_are_plain_decodings(run_engine, method, run):
    plain, ours = run_engine("plain")[JSON], run_engine(f"tree {method}")[run]
    assert tokens(ours) == tokens(plain)
    assert ours["num_accepted"] > 0
    texts = [(c["text"], c["finish_reason"]) for output in ours["outputs"] for c in output]
    wanted = [
        s
        for s, o in zip(schemas(scenarios.NUM_TOOLS).values(), ours["outputs"], strict=True)
        for _ in o
    ]
    ended = [(text, schema) for (text, end), schema in zip(texts, wanted, strict=True) if end == "stop"]
    assert len(ended) > len(texts) // 2
    for text, schema in ended:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("method", scenarios.MIXED_METHODS)
def test_so_they_are_with_ngrams_beside_another_drafter(run_engine, method):
    ours = run_engine(f"tree-short {method}")[JSON]
    assert tokens(ours) == tokens(run_engine("plain")[JSON])
    assert forbidden_share(ours) < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_so_they_are_where_memory_is_tight(run_engine, method):
    plain, ours = run_engine("plain-tight")[JSON], run_engine(f"tree-tight {method}")[JSON]
    assert tokens(ours) == tokens(plain)
    assert forbidden_share(ours) < 0.01


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("run", [JSON, f"chain {JSON}", f"smart {JSON}", "grammar"])
def test_hardly_any_draft_is_forbidden(run_engine, method, run):
    ours = run_engine(f"tree {method}")[run]
    assert forbidden_share(ours) < 0.01
    assert ours["smart_counters"]["trees_without_grammar_by_reason"]["failed"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_forced_nodes_are_drafted_and_are_what_the_target_samples(run_engine, method):
    counted = run_engine(f"tree {method}")[JSON]["smart_counters"]
    forced = counted["draft_nodes_by_source"]["grammar"]
    assert forced > 100
    assert counted["accepted_nodes_by_source"]["grammar"] > 0.4 * forced
    # Deeper than the drafter gets.
    assert counted["accepted_nodes_by_depth"][str(scenarios.FIXED_TREE["depth"] + 1)] > 0


def test_drafts_that_know_grammars_are_accepted_more_often(run_engine):
    ours, without = (run_engine("tree eagle3")[name] for name in (JSON, KNOWN_NOTHING))
    assert tokens(ours) == tokens(without)
    assert forbidden_share(without) > 0.5
    assert accepted_per_tree(ours) > 3 * accepted_per_tree(without)


def test_a_grammar_one_token_behind_costs_acceptance_and_nothing_else(run_engine):
    ours, behind = (run_engine("tree eagle3")[name] for name in (JSON, BEHIND))
    assert tokens(behind) == tokens(ours)
    assert forbidden_share(behind) > 0.5
    assert accepted_per_tree(behind) < 0.5 * accepted_per_tree(ours)


def test_requests_without_grammars_are_drafted_for_as_ever(run_engine):
    counted = run_engine("tree eagle3")["greedy"]["smart_counters"]
    assert counted["grammar_nodes"] == counted["trees_without_grammar"] == 0
    assert counted["draft_nodes_by_source"]["grammar"] == 0


def test_scheduling_ahead_changes_nothing(run_engine):
    ahead = run_engine("tree-async eagle3")[JSON]
    assert tokens(ahead) == tokens(run_engine("plain")[JSON])
    assert forbidden_share(ahead) < 0.01


def test_grammars_that_begin_after_reasoning_mask_nothing_before(run_engine):
    plain, ours = run_engine("plain-reasoning")[JSON], run_engine("tree-reasoning eagle3")[JSON]
    assert tokens(ours) == tokens(plain)
    answers = [completion["text"].partition("\n") for o in ours["outputs"] for completion in o]
    assert sum(answer.lstrip().startswith("{") for _, _, answer in answers) > len(answers) // 2
    assert not any(reasoning.startswith("{") for reasoning, _, _ in answers)
    assert forbidden_share(ours) < 0.01
    assert ours["smart_counters"]["draft_nodes_by_source"]["grammar"] > 20
