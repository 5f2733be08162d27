"""Where drafts are chains, text is plain vLLM's; trees, and rows at wrong places, would change it."""

import json

import pytest

from benchmarks.coverage import serve
from benchmarks.coverage.cases import LARGEST, PLAIN, TARGETS, jobs

pytestmark = pytest.mark.vllm
DTYPE = "bfloat16"
# Target -> the drafter that it is tried with: windows, windows with sinks, and chunks.
FAST = {"mistral-window": "draft_model", "gpt-oss": "ngram", "llama4": "ngram"}
BEHIND = "chain rows a token behind"
TREES = "trees"
UNREFUSED = ("mistral-window",)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Of all engines, by target and engine, all from one process."""
    folder = tmp_path_factory.mktemp("chains")
    chains, trees = {}, {}
    for target, drafter in FAST.items():
        of_target = jobs(target, DTYPE, folder)
        runs = of_target[drafter]["runs"]
        runs.append({**runs[0], "name": BEHIND, "control": BEHIND, "policy": LARGEST["chain"]})
        chains |= {f"{target} {name}": of_target[name] for name in (PLAIN, drafter)}
        if target in UNREFUSED:
            trees[f"{target} {TREES}"] = _with_trees(of_target[drafter])
    return serve.serve({**chains, **trees})  # what is not refused once is never refused after it


def _with_trees(job: dict) -> dict:
    job = json.loads(json.dumps(job))
    job["engine"]["additional_config"]["smart"]["tree"]["shape"] = "tree"
    return {**job, "unrefused": True, "runs": [{**job["runs"][0], "policy": LARGEST["tree"]}]}


@pytest.mark.parametrize("target", FAST)
def test_a_chain_returns_the_tokens_of_plain_decoding(results, target):
    plain, chain = results[f"{target} {PLAIN}"], results[f"{target} {FAST[target]}"]
    for name in (*plain, "largest"):
        of_plain = plain["greedy" if name == "largest" else name]
        assert serve.texts(chain[name]) == serve.texts(of_plain), name
        assert chain[name]["num_branching_steps"] == chain[name]["num_moved"] == 0
    assert len({tuple(text) for text in serve.texts(plain["greedy"])}) == len(
        plain["greedy"]["outputs"]
    )
    assert sum(run["num_accepted"] for run in chain.values()) > 500
    assert not any("Tree" in backend for backend in chain["greedy"]["attention_backends"])
    assert TARGETS[target].shape == "chain"


@pytest.mark.parametrize("target", FAST)
def test_a_row_of_a_chain_at_a_wrong_place_changes_the_text(results, target):
    plain, chain = results[f"{target} {PLAIN}"], results[f"{target} {FAST[target]}"]
    assert serve.num_different(chain[BEHIND], plain["greedy"]) > 0


@pytest.mark.parametrize("target", UNREFUSED)
def test_trees_that_were_not_refused_would_change_the_text(results, target):
    plain, trees = results[f"{target} {PLAIN}"], results[f"{target} {TREES}"]
    assert trees["greedy"]["num_branching_steps"] > 0
    assert serve.num_different(trees["greedy"], plain["greedy"]) > 0
