"""Steps that are scheduled before the one before has been looked at: token for token the same.

On CPUs vLLM does not; see `async_on_cpu`. `test_cuda_path` runs the kernels of GPUs that way.
"""

import pytest

from tests.e2e import scenarios
from tests.e2e.test_lossless import assert_same_logprobs, tokens

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def plain(run_engine):
    return run_engine("plain")


@pytest.fixture(scope="module")
def ahead(run_engine):
    return run_engine("tree-async eagle3")


@pytest.mark.parametrize("run", scenarios.ASYNC_RUNS)
def test_scheduling_ahead_changes_nothing(plain, ahead, run):
    assert ahead[run]["runs_ahead"]
    assert not plain[run]["runs_ahead"]
    assert tokens(ahead[run]) == tokens(plain[run])
    for theirs, ours in zip(plain[run]["outputs"], ahead[run]["outputs"], strict=True):
        assert [c["finish_reason"] for c in ours] == [c["finish_reason"] for c in theirs]
        if run == "logprobs":
            assert_same_logprobs(theirs[0]["logprobs"], ours[0]["logprobs"])
    assert ahead[run]["num_branching_steps"] > 0
    assert ahead[run]["num_accepted"] > 0


def test_grammars_are_kept_to(ahead):
    grammars = [each[0]["text"] for each in ahead["mixed"]["outputs"][-1:]]
    assert all(" = " in text for text in grammars)


def test_trees_are_those_of_synchronous_scheduling(run_engine, ahead):
    tree = run_engine("tree eagle3")
    for name in ("accepted_by_rank", "num_trees", "num_moved"):
        assert ahead["greedy"][name] == tree["greedy"][name]


@pytest.mark.parametrize("run", [scenarios.RESTS, "smart greedy"])
def test_resting_and_deciding_by_costs_change_nothing(plain, ahead, run):
    assert tokens(ahead[run]) == tokens(plain["greedy"])[: scenarios.SHORT_RUNS]


@pytest.mark.parametrize("run", ["greedy", "temperature"])
def test_tight_memory_and_token_budgets_change_nothing(run_engine, run):
    plain, tree = run_engine("plain-tight")[run], run_engine("tree-tight-async eagle3")[run]
    assert tokens(tree) == tokens(plain)
    if run == "greedy":
        assert tree["counters"]["vllm:num_preemptions"] > 0


@pytest.mark.parametrize("control", scenarios.ASYNC_CONTROLS)
def test_breaking_one_part_changes_the_text(plain, ahead, control):
    assert tokens(ahead[control]) != tokens(plain["greedy"])[: scenarios.SHORT_RUNS]
