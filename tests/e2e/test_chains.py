"""Where drafts are chains, text is plain vLLM's; trees, and rows at wrong places, would change it."""

import pytest

from benchmarks.coverage import serve
from benchmarks.coverage.cases import LARGEST, PLAIN, TARGETS
from tests.e2e.coverage_runs import assert_text_is_plain, num_distinct, some_jobs

pytestmark = pytest.mark.vllm
DTYPE = "bfloat16"
CONNECTED = "llama with a KV connector"
# Target -> the drafter that it is tried with: windows with sinks, where chains are asked for, latents,
# and prompts whose KV plain vLLM has saved.
FAST = {
    "gpt-oss as chains": "draft_model",
    "deepseek-v2": "ngram",
    CONNECTED: "ngram",
}
BEHIND = "chain rows a token behind"
FEW = ("greedy", "again", "largest")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chains")


@pytest.fixture(scope="module")
def results(folder) -> dict[str, dict]:
    """Of all engines, by target and engine, all from one process."""
    chains = {}
    for target, drafter in FAST.items():
        of_target = some_jobs(target, DTYPE, folder, FEW)
        runs = of_target[drafter]["runs"]
        runs.append({**runs[0], "name": BEHIND, "control": BEHIND, "policy": LARGEST["chain"]})
        chains |= {f"{target} {name}": of_target[name] for name in (PLAIN, drafter)}
    return serve.serve(chains)


@pytest.mark.parametrize("target", FAST)
def test_a_chain_returns_the_tokens_of_plain_decoding(results, target):
    plain, chain = results[f"{target} {PLAIN}"], results[f"{target} {FAST[target]}"]
    names = (*plain, "largest")
    assert_text_is_plain(chain, plain, names)
    for name in names:
        assert chain[name]["num_branching_steps"] == chain[name]["num_moved"] == 0
    assert num_distinct(plain["greedy"]) == len(plain["greedy"]["outputs"])
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
