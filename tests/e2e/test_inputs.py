"""Images, embeddings and adapters: token for token what plain vLLM returns, on either runner."""

import json
import os
import subprocess
import sys

import pytest

from tests.e2e import inputs_driver
from tests.e2e.caches import caches_in
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Of all engines: with trees, plain on the same runner, and on vLLM's old one."""
    folder = tmp_path_factory.mktemp("inputs")

    def of(kind: str, *, v2: bool) -> dict:
        result = folder / f"{kind}-{v2}.json"
        process = subprocess.run(
            [sys.executable, "-m", "tests.e2e.inputs_driver", str(folder), kind, str(result)],
            cwd=ROOT,
            env={**os.environ, **caches_in(folder), "VLLM_USE_V2_MODEL_RUNNER": str(int(v2))},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert process.returncode == 0, process.stderr[-6000:]
        return json.loads(result.read_text())

    return {"tree": of("tree", v2=True), "plain": of("plain", v2=True), "old": of("plain", v2=False)}


def _plain_name(engine: str) -> str:
    model, _, drafter = engine.partition(" ")
    return f"{model} text" if drafter else engine


@pytest.mark.parametrize("engine", inputs_driver.ENGINES)
@pytest.mark.parametrize("run", ["greedy", "sampled"])
def test_a_tree_returns_the_tokens_of_plain_decoding(results, engine, run):
    tree = results["tree"][engine][run]
    assert tree["tokens"] == results["plain"][_plain_name(engine)][run]["tokens"]
    assert tree["num_branching_steps"] > 0
    if engine != "qwen2.5-vl eagle3":  # a random head, which is hardly ever right
        assert tree["num_moved"] > 0


@pytest.mark.parametrize("engine", inputs_driver.EXAMPLES)
@pytest.mark.parametrize("run", ["greedy", "sampled"])
def test_example_settings_serve_their_model_in_miniature(results, engine, run):
    plain = results["plain"][_plain_name(engine)][run]
    assert results["tree"][engine][run]["tokens"] == plain["tokens"]


@pytest.mark.parametrize("engine", sorted({_plain_name(engine) for engine in inputs_driver.ENGINES}))
def test_greedy_text_is_that_of_the_old_runner(results, engine):
    new, old = (results[runner][engine]["greedy"]["tokens"] for runner in ("plain", "old"))
    assert new == old
    assert len({tuple(tokens) for tokens in new}) > len(new) // 2


@pytest.mark.parametrize("engine", inputs_driver.CONTROLS)
def test_breaking_one_part_changes_the_text(results, engine):
    plain = results["plain"][_plain_name(engine)]["greedy"]["tokens"]
    assert results["tree"][engine]["control"]["tokens"] != plain


@pytest.mark.parametrize("engine", inputs_driver.DRAFTER_CONTROLS)
def test_a_head_that_is_told_less_is_right_less_often(results, engine):
    greedy, control = (results["tree"][engine][run] for run in ("greedy", "control"))
    assert control["tokens"] == greedy["tokens"]
    assert control["num_accepted"] < 0.9 * greedy["num_accepted"]


def test_the_embeddings_of_tokens_give_the_text_of_the_tokens(results):
    tokens, embeddings, *_ = results["tree"]["embeddings"]["greedy"]["tokens"]
    assert embeddings == tokens


def test_logprobs_of_prompts_are_refused_beside_adapters(results):
    """vLLM's own engines die of them, on either runner."""
    assert "leave prompt_logprobs out" in results["tree"]["adapters"]["refusal"]
