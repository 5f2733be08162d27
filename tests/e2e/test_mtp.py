"""A head that the target brings: trees change no text, and it is right as often as in vLLM's chains."""

import pytest

from benchmarks.coverage import serve
from benchmarks.coverage.cases import LARGEST, PLAIN, jobs
from tests.e2e import scenarios

pytestmark = pytest.mark.vllm
TARGET, MTP, STOCK = "mimo", "mtp", "vLLM's chain"
SAME_CHAIN, PADDED, RESTS = "as vLLM", "drafts padded", "rests two steps in three"
# Drafter bugs leave the text right. Control -> the share of acceptance that it leaves at most. Hardly a
# guess of this head hangs on its cache: that it is right is proven by chains, accepted as vLLM's.
CONTROLS = {"hidden states a token behind": 0.6}
FEW = ("greedy", "sampled", "largest")  # benchmarks.coverage has the rest


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Of all runs by engine, all engines from one process."""
    engines = jobs(TARGET, "bfloat16", tmp_path_factory.mktemp("mtp"))
    for job in engines.values():
        job["runs"] = [run for run in job["runs"] if run["name"] in FEW]
    runs = engines[MTP]["runs"]
    greedy = {**runs[0], "policy": LARGEST["tree"]}
    past_the_end = {"control": "draft past the end", "policy": scenarios.CHAIN}
    engines[STOCK] = scenarios.as_stock_chain(engines[MTP], runs[:1])
    runs += [{**greedy, "name": name, "control": name} for name in (*CONTROLS, PADDED, RESTS)]
    runs.append({**greedy, "name": SAME_CHAIN, **past_the_end})
    return serve.serve(engines)


def test_a_tree_returns_the_tokens_of_plain_decoding(results):
    plain, trees = results[PLAIN], results[MTP]
    for name, run in trees.items():
        assert serve.texts(run) == serve.texts(plain[name if name in plain else "greedy"]), name
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


@pytest.mark.parametrize("control", CONTROLS)
def test_breaking_the_head_lowers_acceptance_and_nothing_else(results, control):
    whole, broken = results[MTP]["largest"], results[MTP][control]
    assert serve.texts(broken) == serve.texts(whole)
    assert _acceptance(broken) < CONTROLS[control] * _acceptance(whole)


def test_what_a_head_has_missed_or_is_padded_with_changes_no_acceptance(results):
    whole = _acceptance(results[MTP]["largest"])
    assert _acceptance(results[MTP][PADDED]) == whole
    assert _acceptance(results[MTP][RESTS]) == pytest.approx(whole, rel=0.1)


def _acceptance(run: dict) -> float:
    return run["num_accepted"] / run["num_trees"]
