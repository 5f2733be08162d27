"""Priorities, sleep and other weights while an engine serves: text is plain vLLM's."""

import pytest

from benchmarks.coverage import serve
from benchmarks.coverage.cases import PLAIN
from tests import zoo
from tests.e2e.coverage_runs import assert_text_is_plain, some_jobs

pytestmark = pytest.mark.vllm
TARGET, DTYPE = "llama", "float32"
DRAFTERS = ("draft_model", "ngram")
PRIORITIES, SLEPT, OTHER_WEIGHTS = "priorities", "slept", "other weights"
# So few blocks that requests that matter less are preempted.
FEW_BLOCKS = {"scheduling_policy": "priority", "num_gpu_blocks_override": 24, "block_size": 32}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("operations")
    engines = some_jobs(TARGET, DTYPE, folder, ("greedy",))
    for job in engines.values():
        job["engine"] |= FEW_BLOCKS
        greedy = job["runs"][0]
        last_first = [-index for index in range(len(greedy["prompts"]))]
        job["runs"] += [
            {**greedy, "name": PRIORITIES, "priorities": last_first},
            {**greedy, "name": SLEPT, "sleeps": True},
            {**greedy, "name": OTHER_WEIGHTS, "weights": str(zoo.tiny_drafter(TARGET, folder))},
        ]
    return serve.serve(engines)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_text_is_that_of_plain_decoding(results, drafter):
    runs = results[drafter]
    assert_text_is_plain(runs, results[PLAIN], runs)
    assert sum(run["num_accepted"] for run in runs.values()) > 500


def test_requests_were_preempted_for_others(results):
    assert results[PLAIN][PRIORITIES]["counters"]["vllm:num_preemptions"] > 0
    for drafter in DRAFTERS:
        assert results[drafter][PRIORITIES]["counters"]["vllm:num_preemptions"] > 0


def test_other_weights_say_something_else(results):
    plain = results[PLAIN]
    assert serve.num_different(plain[OTHER_WEIGHTS], plain["greedy"]) > 8
