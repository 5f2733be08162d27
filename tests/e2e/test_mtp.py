"""A head that the target brings: trees change no text, and it is right as often as in vLLM's chains."""

import pytest

from benchmarks.coverage import serve
from benchmarks.coverage.cases import LARGEST, PLAIN, jobs
from tests.e2e import scenarios

pytestmark = pytest.mark.vllm
TARGET, MTP, STOCK = "mimo", "mtp", "vLLM's chain"
SAME_CHAIN, PADDED, RESTS = "as vLLM", "drafts padded", "rests two steps in three"
# Drafter bugs leave the text right.
BEHIND, SEES_ALL = "hidden states a token behind", "draft levels see all"
SHORT = "short prompts"  # beside which the siblings of a node weigh something
FEW = ("greedy", "sampled", "largest")  # benchmarks.coverage has the rest


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Of all runs by engine, all engines from one process."""
    engines = jobs(TARGET, "bfloat16", tmp_path_factory.mktemp("mtp"))
    for job in engines.values():
        job["runs"] = [run for run in job["runs"] if run["name"] in FEW]
    runs = engines[MTP]["runs"]
    greedy = {**runs[0], "policy": LARGEST["tree"]}
    short = {**greedy, "name": SHORT, "prompts": [prompt[:3] for prompt in greedy["prompts"]]}
    past_the_end = {"control": "draft past the end", "policy": scenarios.CHAIN}
    engines[STOCK] = scenarios.as_stock_chain(engines[MTP], runs[:1])
    runs += [{**greedy, "name": name, "control": name} for name in (BEHIND, PADDED, RESTS)]
    runs += [{**greedy, "name": SAME_CHAIN, **past_the_end}]
    runs += [short, {**short, "name": SEES_ALL, "control": SEES_ALL}]
    return serve.serve(engines)


def test_a_tree_returns_the_tokens_of_plain_decoding(results):
    plain, trees = results[PLAIN], results[MTP]
    for name in trees.keys() - {SHORT, SEES_ALL}:
        of_plain = plain[name if name in plain else "greedy"]
        assert serve.texts(trees[name]) == serve.texts(of_plain), name
    assert len({tuple(text) for text in serve.texts(plain["greedy"])}) == len(
        plain["greedy"]["outputs"]
    )
    largest = trees["largest"]
    assert largest["num_branching_steps"] > 0
    assert largest["num_moved"] > 0
    assert sum(largest["accepted_by_rank"].values()) > largest["accepted_by_rank"]["0"]


def test_a_chain_of_ours_is_drafted_and_accepted_exactly_as_vllms_own(results):
    stock, ours = results[STOCK]["greedy"]["counters"], results[MTP][SAME_CHAIN]["counters"]
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens"):
        counter = f"vllm:spec_decode_{name}"
        assert ours[counter] == stock[counter] > 0, name
    by_position = "vllm:spec_decode_num_accepted_tokens_per_pos"
    assert ours[by_position][: len(stock[by_position])] == stock[by_position]


@pytest.mark.parametrize(("control", "of"), [(BEHIND, "largest"), (SEES_ALL, SHORT)])
def test_breaking_the_head_lowers_acceptance_and_nothing_else(results, control, of):
    whole, broken = results[MTP][of], results[MTP][control]
    assert serve.texts(broken) == serve.texts(whole)
    assert broken["num_accepted"] < 0.97 * whole["num_accepted"]


def test_what_a_head_has_missed_or_is_padded_with_changes_no_acceptance(results):
    whole = _acceptance(results[MTP]["largest"])
    assert _acceptance(results[MTP][PADDED]) == whole
    assert _acceptance(results[MTP][RESTS]) == pytest.approx(whole, rel=0.1)


def _acceptance(run: dict) -> float:
    return run["num_accepted"] / run["num_trees"]
