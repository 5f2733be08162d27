"""Where drafts are chains, text is plain vLLM's; trees, and rows at wrong places, would change it."""

import json

import pytest

from benchmarks.coverage import serve
from benchmarks.coverage.cases import LARGEST, PLAIN, TARGETS, jobs
from tests.e2e import scenarios

pytestmark = pytest.mark.vllm
DTYPE = "bfloat16"
CONNECTED = "llama with a KV connector"
# Target -> the drafter that it is tried with: windows, windows with sinks, chunks, latents, and prompts
# whose KV plain vLLM has saved.
FAST = {
    "mistral-window": "draft_model",
    "gpt-oss": "ngram",
    "llama4": "ngram",
    "deepseek-v2": "ngram",
    CONNECTED: "ngram",
}
BEHIND = "chain rows a token behind"
RESTS = "rests two steps in three"
FEW = ("greedy", "again", "largest")
STOCK, TREES, SAME_CHAIN = "vLLM's chain", "trees", "as vLLM"
DRAFTED = "mistral-window"  # by a model, which has windows, too; also served as trees, unrefused


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chains")


@pytest.fixture(scope="module")
def results(folder) -> dict[str, dict]:
    """Of all engines, by target and engine, all from one process."""
    chains, trees = {}, {}
    for target, drafter in FAST.items():
        of_target = jobs(target, DTYPE, folder)
        if target != DRAFTED:  # benchmarks.coverage has the rest
            for job in of_target.values():
                job["runs"] = [run for run in job["runs"] if run["name"] in FEW]
        runs = of_target[drafter]["runs"]
        runs.append({**runs[0], "name": BEHIND, "control": BEHIND, "policy": LARGEST["chain"]})
        if target == DRAFTED:
            past = {"control": "draft past the end", "policy": scenarios.CHAIN}
            runs.append({**runs[0], "name": SAME_CHAIN, **past})
            runs.append({**runs[0], "name": RESTS, "control": RESTS})
            chains[STOCK] = scenarios.as_stock_chain(of_target[drafter], runs[:1])
            trees[TREES] = _with_trees(of_target[drafter])
        chains |= {f"{target} {name}": of_target[name] for name in (PLAIN, drafter)}
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


def test_a_connector_has_kept_the_prompts(results, folder):
    plain = results[f"{CONNECTED} {PLAIN}"]["greedy"]
    saved = list((folder / "prompts").glob("*/*.safetensors"))
    assert len({path.parent for path in saved}) > len(plain["outputs"]) // 2  # some begin alike


def test_a_drafter_with_windows_is_right_as_often_as_in_vllms_chains(results):
    name = "vllm:spec_decode_num_accepted_tokens_per_pos"
    stock = results[STOCK]["greedy"]["counters"][name]
    ours = results[f"{DRAFTED} draft_model"][SAME_CHAIN]["counters"][name]
    assert ours[: len(stock)] == stock
    assert sum(ours) == sum(stock) > 0


def test_a_drafter_with_windows_reads_what_it_has_missed(results):
    plain, rested = results[f"{DRAFTED} {PLAIN}"], results[f"{DRAFTED} draft_model"][RESTS]
    assert serve.texts(rested) == serve.texts(plain["greedy"])
    assert rested["num_accepted"] > 100


def test_trees_that_were_not_refused_would_change_the_text(results):
    plain, trees = results[f"{DRAFTED} {PLAIN}"], results[TREES]
    assert trees["greedy"]["num_branching_steps"] > 0
    assert serve.num_different(trees["greedy"], plain["greedy"]) > 0
