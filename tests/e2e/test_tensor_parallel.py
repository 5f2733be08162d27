"""Trees over two ranks: token for token the same, and every rank grows the same ones."""

import json
import os
import subprocess
import sys

import pytest

from tests import zoo
from tests.e2e import scenarios
from tests.e2e.caches import caches_in
from tests.e2e.conftest import ROOT
from tests.tool_calls.schemas import schemas
from vllm_smart.demo_model import demo_model_paths
from vllm_smart.demo_model.inflate import inflate_pair

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

NUM_REQUESTS, MOST_PROMPT = 6, 200
EXPERTS = "qwen3-moe"
SIZES = {"max_num_seqs": 4, "max_num_batched_tokens": 256, "max_model_len": 512}
# Also what a rank measures must not decide alone: `smart` goes by rank 0's costs. Before it runs, all
# steps have been timed between requests.
POLICIES = [scenarios.FIXED_TREE, {"name": "smart", "may_turn_off": False}]


@pytest.fixture(scope="module")
def run_ranks(tmp_path_factory):
    """Function from a name, LLM arguments and policies to the runs of an engine of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    # The shipped pair has three heads, which two ranks cannot share.
    inflate_pair(
        demo_model_paths()["target"].parent,
        folder / "pair",
        hidden_size=768,
        num_layers=4,
        intermediate_size=2048,
        dtype="float32",
    )
    prompts = [p for p in scenarios.prompts() if len(p) < MOST_PROMPT][:NUM_REQUESTS]
    params = [
        {"temperature": 0.8 * (index % 2), "seed": index, "max_tokens": 32, "ignore_eos": True}
        for index in range(NUM_REQUESTS)
    ]
    # Each rank compiles grammars of its own: they must be ready in the same step.
    for each, schema in zip(params[::3], schemas(NUM_REQUESTS).values(), strict=False):
        each |= {"ignore_eos": False, "structured_outputs": {"json": json.dumps(schema)}}

    def run(
        name: str, arguments: dict, policies: list[dict | None], pause_s: float = 0.0
    ) -> list[dict]:
        engine = {
            "model": str(folder / "pair" / "target"),
            "dtype": "float32",
            "enforce_eager": True,
            "seed": 0,
            "gpu_memory_utilization": 0.2,
            "tensor_parallel_size": 2,
            "structured_outputs_config": scenarios.COMPACT,
            **SIZES,
            **arguments,
        }
        job, result = folder / f"{name}.json", folder / f"{name}.result.json"
        content = {"engine": engine, "policies": policies, "prompts": prompts, "params": params}
        job.write_text(json.dumps(content))
        process = subprocess.run(
            [sys.executable, "-m", "tests.e2e.ranks", str(job), str(result)],
            cwd=ROOT,
            env={**os.environ, **caches_in(folder)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert process.returncode == 0, process.stderr[-6000:]
        run.log = process.stdout + process.stderr
        return json.loads(result.read_text())

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def plain(run_ranks):
    return run_ranks("plain", {}, [None])[0]


@pytest.fixture(scope="module", params=["eagle3", "eagle3+ngram", "ngram"])
def trees(run_ranks, request):
    drafter = str(run_ranks.folder / "pair" / "eagle3")
    arguments = scenarios.with_trees(request.param, model=drafter)
    costs = {"repeats": 1, "budget_s": 2.0, "cache_dir": str(run_ranks.folder / request.param)}
    arguments["additional_config"]["smart"]["cost_table"] = costs
    return run_ranks(request.param, arguments, POLICIES)


@pytest.fixture(scope="module")
def experts(run_ranks):
    """Arguments of an engine whose ranks compute a part of every expert, and its runs without trees."""
    model = str(zoo.tiny_model(EXPERTS, run_ranks.folder))
    arguments = {"model": model, "max_model_len": 256}
    return arguments, run_ranks("experts plain", arguments, [None])[0]


@pytest.mark.parametrize("drafter", ["draft_model", "ngram"])
def test_ranks_that_share_experts_return_what_they_return_without_trees(run_ranks, experts, drafter):
    arguments, plain = experts
    model = str(zoo.tiny_drafter(EXPERTS, run_ranks.folder))
    trees = scenarios.with_trees(drafter, scenarios.FIXED_TREE, model)
    (found,) = run_ranks(f"experts {drafter}", arguments | trees, [None])
    assert found["tokens"] == plain["tokens"]
    for counted in found["counted"]:
        assert counted["accepted_nodes"] > 20


def test_steps_were_timed_while_the_engine_was_idle(run_ranks, trees):
    assert "costs are a first guess" in run_ranks.log
    assert run_ranks.log.count("costs measured while idle") == 1


@pytest.mark.parametrize("policy", range(len(POLICIES)), ids=lambda i: POLICIES[i]["name"])
def test_two_ranks_return_what_they_return_without_trees(plain, trees, policy):
    assert trees[policy]["tokens"] == plain["tokens"]


@pytest.mark.parametrize("policy", range(len(POLICIES)), ids=lambda i: POLICIES[i]["name"])
def test_both_ranks_grow_the_same_trees(trees, policy):
    first, second = trees[policy]["counted"]
    for name in ("steps", "draft_nodes", "accepted_nodes", "trees"):
        assert first[name] == second[name] > 0, name
    for name in ("draft_levels", "rows_read", "draft_nodes_by_source", "accepted_nodes_by_source"):
        assert first[name] == second[name], name
    for name in ("grammar_nodes_by_verdict", "trees_without_grammar_by_reason"):
        assert first[name] == second[name], name
    assert first["draft_nodes_by_source"]["grammar"] > 0
