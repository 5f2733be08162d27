"""Trees where layers have windows, chunks, sinks, soft caps or biases: text is plain vLLM's."""

import pytest

from benchmarks.coverage import serve
from benchmarks.coverage.cases import PLAIN, TARGETS
from tests.e2e import scenarios
from tests.e2e.coverage_runs import assert_text_is_plain, num_distinct, some_jobs

pytestmark = pytest.mark.vllm
DTYPE = "bfloat16"
BY_SLOT = "windows by slot"
DRAFTED = "gemma2"  # which has windows, and layers without
DRAFTER = "draft_model"  # a model like the target
# Target -> what its text does not survive. Contexts are several windows and chunks long.
# benchmarks.coverage has the rest.
FAST = {
    DRAFTED: (BY_SLOT, "no soft caps"),
    "gpt-oss": (BY_SLOT, "no sinks"),
    "bloom": ("no position biases",),
    "llama4": (BY_SLOT,),
}
FEW = ("greedy", "again", "sampled", "largest")
STOCK, SAME_CHAIN = "vLLM's chain", "as vLLM"
# Whose drafter has missed more than its windows when it goes on.
RESTED, RESTS = "gpt-oss", "rests forty steps in sixty"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Of all engines, by target and engine, all from one process."""
    folder, engines = tmp_path_factory.mktemp("windows"), {}
    for target, controls in FAST.items():
        of_target = some_jobs(target, DTYPE, folder, FEW)
        runs = of_target[DRAFTER]["runs"]
        if target == DRAFTED:
            past = {"control": "draft past the end", "policy": scenarios.CHAIN}
            engines[STOCK] = scenarios.as_stock_chain(of_target[DRAFTER], runs[:1])
            # First, before prompts are found in the prefix cache that the drafter has not read.
            runs.insert(0, {**runs[0], "name": SAME_CHAIN, **past})
        if target == RESTED:
            controls = (RESTS, *controls)
        largest = next(run for run in runs if run["name"] == "largest")
        runs += [{**largest, "name": name, "control": name} for name in controls]
        engines |= {f"{target} {name}": of_target[name] for name in (PLAIN, DRAFTER)}
    return serve.serve(engines)


@pytest.mark.parametrize("target", FAST)
def test_a_tree_returns_the_tokens_of_plain_decoding(results, target):
    plain, trees = results[f"{target} {PLAIN}"], results[f"{target} {DRAFTER}"]
    assert_text_is_plain(trees, plain, (*plain, "largest"))
    assert num_distinct(plain["greedy"]) >= 15
    assert trees["largest"]["num_moved"] > 50
    assert any("Tree" in backend for backend in trees["greedy"]["attention_backends"])
    assert TARGETS[target].shape == "tree"


@pytest.mark.parametrize(
    ("target", "control"), [(target, name) for target, names in FAST.items() for name in names]
)
def test_what_is_special_about_a_layer_holds_for_each_node(results, target, control):
    plain, trees = results[f"{target} {PLAIN}"], results[f"{target} {DRAFTER}"]
    assert trees[control]["num_branching_steps"] > 0
    assert serve.num_different(trees[control], plain["greedy"]) > 0


def test_a_drafter_with_windows_is_right_as_often_as_in_vllms_chains(results):
    name = "vllm:spec_decode_num_accepted_tokens_per_pos"
    stock = results[STOCK]["greedy"]["counters"][name]
    ours = results[f"{DRAFTED} {DRAFTER}"][SAME_CHAIN]["counters"][name]
    assert ours[: len(stock)] == stock
    assert sum(ours) == sum(stock) > 0


def test_a_drafter_that_has_missed_more_than_its_windows_goes_on(results):
    plain, trees = results[f"{RESTED} {PLAIN}"], results[f"{RESTED} {DRAFTER}"]
    assert serve.texts(trees[RESTS]) == serve.texts(plain["greedy"])
    assert trees[RESTS]["num_accepted"] > 20
