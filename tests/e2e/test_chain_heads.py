"""Heads on targets that have chains alone: recurrent layers, and a drafter that keeps no cache."""

import pytest

from benchmarks.coverage import serve
from benchmarks.coverage.cases import LARGEST, PLAIN, TARGETS, jobs
from tests.e2e import scenarios

pytestmark = pytest.mark.vllm
RECURRENT, ASSISTANT, MTP, STOCK = "qwen3-next", "gemma4", "mtp", "vLLM's chain"
SAME_CHAIN, BEHIND, RESTS = "as vLLM", "hidden states a token behind", "rests two steps in three"
OWN_STATES, ADVANCES = "states of the first row", "assistants advance"
# What each target is tried with besides. benchmarks.coverage has the rest.
CONTROLS = {RECURRENT: (BEHIND, RESTS, OWN_STATES), ASSISTANT: (BEHIND, RESTS, ADVANCES)}
FEW = ("greedy", "sampled", "largest")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Of all engines, by target and engine, all from one process."""
    folder = tmp_path_factory.mktemp("heads")
    engines = {}
    for target, controls in CONTROLS.items():
        of_target = jobs(target, "bfloat16", folder)
        for job in of_target.values():
            job["runs"] = [run for run in job["runs"] if run["name"] in FEW]
        runs = of_target[MTP]["runs"]
        greedy = {**runs[0], "policy": LARGEST["chain"]}
        past_the_end = {"control": "draft past the end", "policy": scenarios.CHAIN}
        engines[f"{target} {STOCK}"] = scenarios.as_stock_chain(of_target[MTP], runs[:1])
        runs += [{**greedy, "name": name, "control": name} for name in controls]
        runs.append({**greedy, "name": SAME_CHAIN, **past_the_end})
        engines |= {f"{target} {name}": of_target[name] for name in (PLAIN, MTP)}
    return serve.serve(engines)


def changes_text(name: str) -> bool:
    return name == OWN_STATES


@pytest.mark.parametrize("target", CONTROLS)
def test_a_chain_returns_the_tokens_of_plain_decoding(results, target):
    plain, chains = results[f"{target} {PLAIN}"], results[f"{target} {MTP}"]
    for name, run in chains.items():
        if not changes_text(name):
            of_plain = plain[name if name in plain else "greedy"]
            assert serve.texts(run) == serve.texts(of_plain), name
        assert run["num_branching_steps"] == 0
    assert len({tuple(text) for text in serve.texts(plain["greedy"])}) >= 15
    assert chains["largest"]["num_accepted"] > 300
    assert TARGETS[target].shape == "chain"


@pytest.mark.parametrize("target", CONTROLS)
def test_a_chain_of_ours_is_drafted_and_accepted_exactly_as_vllms_own(results, target):
    stock = results[f"{target} {STOCK}"]["greedy"]["counters"]
    ours = results[f"{target} {MTP}"][SAME_CHAIN]["counters"]
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens"):
        counter = f"vllm:spec_decode_{name}"
        assert ours[counter] == stock[counter] > 0, name
    by_position = "vllm:spec_decode_num_accepted_tokens_per_pos"
    assert ours[by_position][: len(stock[by_position])] == stock[by_position]


@pytest.mark.parametrize("target", CONTROLS)
def test_hidden_states_of_other_rows_lower_acceptance(results, target):
    runs = results[f"{target} {MTP}"]
    assert _acceptance(runs[BEHIND]) < 0.6 * _acceptance(runs["largest"])


def test_a_step_that_goes_on_from_another_rows_state_changes_the_text(results):
    runs, plain = results[f"{RECURRENT} {MTP}"], results[f"{RECURRENT} {PLAIN}"]
    assert serve.num_different(runs[OWN_STATES], plain["greedy"]) > 0


def test_an_assistant_looks_from_where_the_target_was(results):
    runs = results[f"{ASSISTANT} {MTP}"]
    assert _acceptance(runs[ADVANCES]) != _acceptance(runs["largest"])


def _acceptance(run: dict) -> float:
    return run["num_accepted"] / run["num_trees"]
