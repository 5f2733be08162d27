"""Block drafters: trees and chains change no text, and are right as often as in vLLM's chains."""

import pytest

from benchmarks.coverage import serve
from benchmarks.coverage.cases import LARGEST, PLAIN, TARGETS
from tests.e2e import scenarios
from tests.e2e.acceptance import acceptance, assert_drafted_alike
from tests.e2e.coverage_runs import assert_text_is_plain, num_distinct, some_jobs

pytestmark = pytest.mark.vllm
TREES, CHAINS = "llama blocks", "gpt-oss blocks as chains"
# Target -> the drafter that it is tried with. benchmarks.coverage has the rest.
FAST = {TREES: ("dflash", "dspark"), CHAINS: ("dflash",)}
STOCK, SAME_CHAIN, RESTS = "vLLM's chain", "as vLLM", "rests two steps in three"
# Drafter bugs leave the text right. Control -> the share of acceptance that it leaves at most.
CONTROLS = {
    "hidden states a token behind": 0.9,
    "drafts by the cache of the request beside": 0.5,
    "blocks see what is before them": 0.5,
}
FEW = ("greedy", "sampled", "grammar", "largest")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Of all runs by target and engine, all engines from one process."""
    folder = tmp_path_factory.mktemp("blocks")
    engines = {}
    for target, drafters in FAST.items():
        of_target = some_jobs(target, "bfloat16", folder, FEW)
        for name in (PLAIN, *drafters):
            job = of_target[name]
            runs = job["runs"]
            engines[f"{target} {name}"] = job
            if name == PLAIN:
                continue
            engines[f"{target} {name} {STOCK}"] = scenarios.as_stock_chain(job, runs[:1])
            past_the_end = {"control": "draft past the end", "policy": scenarios.CHAIN}
            runs.append({**runs[0], "name": SAME_CHAIN, **past_the_end})
            if (target, name) == (TREES, "dflash"):
                greedy = {**runs[0], "policy": LARGEST["tree"]}
                runs += [{**greedy, "name": name, "control": name} for name in (*CONTROLS, RESTS)]
    return serve.serve(engines)


PAIRS = [(target, drafter) for target, drafters in FAST.items() for drafter in drafters]


@pytest.mark.parametrize(("target", "drafter"), PAIRS)
def test_blocks_return_the_tokens_of_plain_decoding(results, target, drafter):
    plain, drafted = results[f"{target} {PLAIN}"], results[f"{target} {drafter}"]
    assert_text_is_plain(drafted, plain, drafted)
    assert num_distinct(plain["greedy"]) >= 15
    largest = drafted["largest"]
    assert largest["num_accepted"] > 200
    branches = TARGETS[target].shape == "tree"
    assert (largest["num_branching_steps"] > 0) == branches
    assert (largest["num_moved"] > 0) == branches


@pytest.mark.parametrize(("target", "drafter"), PAIRS)
def test_a_chain_of_ours_is_drafted_and_accepted_exactly_as_vllms_own(results, target, drafter):
    assert_drafted_alike(
        results[f"{target} {drafter}"][SAME_CHAIN], results[f"{target} {drafter} {STOCK}"]["greedy"]
    )


@pytest.mark.parametrize("control", CONTROLS)
def test_breaking_a_block_lowers_acceptance_and_nothing_else(results, control):
    runs = results[f"{TREES} dflash"]
    assert acceptance(runs[control]) < CONTROLS[control] * acceptance(runs["largest"])


def test_what_a_drafter_has_missed_lowers_no_acceptance(results):
    runs = results[f"{TREES} dflash"]
    assert acceptance(runs[RESTS]) == pytest.approx(acceptance(runs["largest"]), rel=0.1)
