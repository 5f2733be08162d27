"""An engine whose YAML is edited while it serves, and the trace that it writes."""

import json

import pytest

from tests.e2e import scenarios
from tests.e2e.test_lossless import tokens

pytestmark = pytest.mark.vllm
ENGINE = "live eagle3"


@pytest.fixture(scope="module")
def runs(run_engine):
    return run_engine(ENGINE)


@pytest.fixture(scope="module")
def engine_folder(runs, engines_folder):
    return engines_folder / ENGINE.replace(" ", "-")


def test_edits_change_what_is_drafted_and_not_a_token(run_engine, runs):
    plain = tokens(run_engine("plain")["greedy"])[: scenarios.SHORT_RUNS]
    for name, run in runs.items():
        assert tokens(run) == plain, name


def test_an_edit_takes_effect(runs):
    smart, chain = runs["smart"]["smart_counters"], runs["chain"]["smart_counters"]
    assert smart["steps_without_drafting"] == chain["steps_without_drafting"] == 0
    assert chain["draft_nodes"] / chain["trees"] == pytest.approx(3, abs=0.2)
    assert runs["smart"]["num_branching_steps"] > 0
    assert runs["chain"]["num_branching_steps"] == 0
    off = runs["off"]["smart_counters"]
    assert off["steps_without_drafting"] == off["steps"] > 0
    assert off["rows_read"] == 0


@pytest.mark.parametrize("edit", ["bad", "larger"])
def test_an_edit_that_cannot_be_taken_over_changes_nothing(runs, edit):
    for name in ("draft_nodes", "accepted_nodes", "trees"):
        assert runs[edit]["smart_counters"][name] == runs["chain"]["smart_counters"][name]


def test_after_a_long_rest_the_drafter_goes_on_in_a_window(runs):
    window = runs["window"]
    assert window["smart_counters"]["steps_without_drafting"] == 100
    # Each request reads no more than is kept of it: 64 tokens, and a block to fill.
    assert window["smart_counters"]["rows_read"] < scenarios.SHORT_RUNS * (64 + 32 + 40)
    assert 1 + window["num_accepted"] / window["num_trees"] > 1.5


def test_requests_may_cap_their_trees(runs):
    capped = runs["capped"]["smart_counters"]
    assert 0 < capped["draft_nodes"] <= scenarios.SHORT_RUNS * capped["steps"]
    assert sum(capped["step_draft_nodes"][6:]) == 0  # steps of more than 16 nodes
    assert runs["capped"]["num_branching_steps"] == 0


def test_what_was_learnt_outlives_the_engine(engine_folder, runs):
    from vllm_smart.config import AcceptanceConfig
    from vllm_smart.scheduler import AcceptanceModel
    from vllm_smart.scheduler.acceptance_state import read_acceptance

    path = engine_folder / "acceptance.json"
    pair = [json.loads(path.read_text())[name] for name in ("target", "drafter")]
    model = AcceptanceModel(AcceptanceConfig())
    untaught = model.mean_by_rank(1).tolist()
    model.relearn(read_acceptance(*pair, path))
    assert pair[1].startswith("eagle3:")
    assert model.mean_by_rank(1).tolist() != untaught


def test_the_trace_says_what_was_decided_and_what_came_of_it(engine_folder, runs):
    from vllm_smart.trace import read_trace

    steps = read_trace(engine_folder / "trace.jsonl").steps
    counted = [run["smart_counters"] for run in runs.values()]
    nodes = sum(request.num_draft_nodes for step in steps for request in step.decision.requests)
    outcomes = [step.outcome for step in steps if step.outcome is not None]
    accepted = sum(len(request.accepted) for step in outcomes for request in step.requests)
    own = [step.decision.read_rows - step.decision.sunk_rows for step in steps]
    most = scenarios.SHORT_RUNS * (1 + scenarios.TREE["depth"])
    assert any(step.decision.sunk_rows for step in steps), "prompts were read"
    assert all(0 <= rows <= most for rows in own)
    assert nodes == sum(counters["chosen_nodes"] for counters in counted)
    assert accepted == sum(run["num_accepted"] for run in runs.values())
