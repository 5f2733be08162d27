"""Token for token what plain vLLM returns, in float32, whatever is asked for."""

import pytest

from tests.e2e import scenarios

pytestmark = pytest.mark.vllm
LOGPROB_TOLERANCE = 1e-4  # float32 sums in another order
METHODS = (*scenarios.METHODS, *scenarios.NGRAM_METHODS)


def tokens(result: dict) -> list[list[list[int]]]:
    return [[completion["token_ids"] for completion in output] for output in result["outputs"]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("run", [*scenarios.SAMPLING, "grammar", "mixed", scenarios.AT_TEMPERATURES])
def test_a_tree_returns_the_tokens_of_plain_decoding(run_engine, method, run):
    plain, tree = run_engine("plain")[run], run_engine(f"tree {method}")[run]
    assert tokens(tree) == tokens(plain)
    assert [[c["text"] for c in o] for o in tree["outputs"]] == [
        [c["text"] for c in o] for o in plain["outputs"]
    ]
    assert [[c["finish_reason"] for c in o] for o in tree["outputs"]] == [
        [c["finish_reason"] for c in o] for o in plain["outputs"]
    ]
    assert tree["num_branching_steps"] > 0
    assert tree["num_accepted"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_requests_of_one_token_join_without_drafts(run_engine, method):
    plain, tree = (run_engine(name)[scenarios.JOINS] for name in ("plain", f"tree {method}"))
    assert tokens(tree) == tokens(plain)
    assert tree["prompt_logprobs"] == plain["prompt_logprobs"] == [[None]] * len(tree["outputs"])
    assert tree["num_accepted"] > 0


def test_padding_taken_for_drafts_is_noticed(run_engine):
    plain, broken = run_engine("plain")[scenarios.JOINS], run_engine("tree eagle3")[scenarios.PADDED]
    assert broken["prompt_logprobs"] != plain["prompt_logprobs"]
    # Requests that go on from the prefix cache have one token left; in some the slot's last tree fits.
    broken = run_engine("tree-tight ngram")[scenarios.PADDED]
    plain = [each for each in tokens(run_engine("plain-tight")["greedy"]) for _ in range(2)]
    assert tokens(broken) != plain


@pytest.mark.parametrize("method", scenarios.MIXED_METHODS)
def test_ngrams_beside_another_drafter_return_the_tokens_of_plain_decoding(run_engine, method):
    plain, tree = run_engine("plain"), run_engine(f"tree-short {method}")
    assert tokens(tree["mixed"]) == tokens(plain["mixed"])
    assert tokens(tree["greedy"]) == tokens(plain["greedy"])[: scenarios.SHORT_RUNS]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("run", ["greedy", "temperature"])
def test_tight_memory_and_token_budgets_change_nothing(run_engine, method, run):
    plain, tree = run_engine("plain-tight")[run], run_engine(f"tree-tight {method}")[run]
    assert tokens(tree) == tokens(plain)
    assert tree["num_moved"] > 0
    if run == "greedy":
        assert tree["counters"]["vllm:num_preemptions"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_the_second_pass_reads_the_prefix_cache(run_engine, method):
    assert run_engine(f"tree {method}")["greedy again"]["counters"]["vllm:prefix_cache_hits"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_the_marginal_rule_changes_nothing(run_engine, method):
    plain, smart = run_engine("plain"), run_engine(f"tree {method}")
    for run in ("greedy", "temperature"):
        assert tokens(smart[f"smart {run}"]) == tokens(plain[run])[: scenarios.SMART_RUNS]


def test_giving_way_to_who_waits_changes_nothing(run_engine):
    plain, smart = run_engine("plain-tight"), run_engine("tree-waiting eagle3")
    for run, times in (("greedy", 2), ("temperature", 1)):
        theirs = [each for each in tokens(plain[run])[: scenarios.WAITING_RUNS] for _ in range(times)]
        assert tokens(smart[run]) == theirs
        assert smart[run]["num_accepted"] > 0
        assert smart[run]["smart_counters"]["steps_without_drafting_by_reason"]["prompts"] > 0
    counters = smart["greedy"]["counters"]
    assert counters["vllm:prefix_cache_hits"] > 0
    assert counters["vllm:num_preemptions"] > 0


def test_what_is_broken_while_others_wait_is_noticed(run_engine):
    plain, broken = run_engine("plain-tight")["greedy"], run_engine("tree-waiting eagle3")
    broken = tokens(broken["no compaction"])
    assert broken != tokens(plain)[: len(broken)]


@pytest.mark.parametrize("method", METHODS)
def test_logprobs_are_those_of_plain_decoding(run_engine, method):
    plain, tree = run_engine("plain")["logprobs"], run_engine(f"tree {method}")["logprobs"]
    for expected, actual in zip(plain["outputs"], tree["outputs"], strict=True):
        assert_same_logprobs(expected[0]["logprobs"], actual[0]["logprobs"])


@pytest.mark.parametrize("run", scenarios.IN_PARTS_RUNS)
def test_sampling_a_few_rows_at_a_time_changes_nothing(run_engine, run):
    """Histories of penalties are laid out in other rows than the logits, and so are cut elsewhere."""
    plain, tree = run_engine("plain")[run], run_engine("tree eagle3")[f"{run}, {scenarios.IN_PARTS}"]
    assert tokens(tree) == tokens(plain)[: scenarios.SHORT_RUNS]
    if run == "logprobs":
        for expected, actual in zip(plain["outputs"], tree["outputs"], strict=False):
            assert_same_logprobs(expected[0]["logprobs"], actual[0]["logprobs"])


@pytest.mark.parametrize("method", METHODS)
def test_prompt_logprobs_are_those_of_plain_decoding(run_engine, method):
    name = "prompt logprobs"
    plain, tree = run_engine("plain")[name], run_engine(f"tree {method}")[name]
    for expected, actual in zip(plain["prompt_logprobs"], tree["prompt_logprobs"], strict=True):
        assert expected[0] is actual[0] is None
        assert_same_logprobs(expected[1:], actual[1:])


def assert_same_logprobs(expected: list[dict], actual: list[dict]) -> None:
    assert len(actual) == len(expected)
    for want, have in zip(expected, actual, strict=True):
        assert have.keys() == want.keys()
        for token, (logprob, rank) in want.items():
            assert have[token][0] == pytest.approx(logprob, abs=LOGPROB_TOLERANCE)
            assert have[token][1] == rank


@pytest.mark.parametrize("control", scenarios.CONTROLS)
def test_breaking_one_part_changes_the_text(run_engine, control):
    reference = scenarios.CONTROLS[control]
    plain = tokens(run_engine("plain")[reference])[: scenarios.SHORT_RUNS]
    broken = tokens(run_engine("tree eagle3")[control])
    assert broken != plain
