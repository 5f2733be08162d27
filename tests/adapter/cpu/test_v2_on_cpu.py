"""Model Runner V2 on the CPU generates what vLLM's old CPU runner does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.adapter.cpu.run_engines import DRAFT_MODELS, DRAFTERS, SAMPLING

pytestmark = pytest.mark.vllm

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def _run(folder: Path, *, v2: bool) -> dict:
    result = folder / f"v{1 + v2}.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.adapter.cpu.run_engines", str(result)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, **ENVIRONMENT, "VLLM_USE_V2_MODEL_RUNNER": str(int(v2))},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 0, process.stderr[-6000:]
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def runners(tmp_path_factory) -> tuple[dict, dict]:
    """Results of the old runner and of V2."""
    folder = tmp_path_factory.mktemp("runners")
    return _run(folder, v2=False), _run(folder, v2=True)


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_v2_generates_the_tokens_of_the_old_runner(drafter, sampling, runners):
    old, v2 = runners
    assert v2[drafter]["tokens"][sampling] == old[drafter]["tokens"][sampling]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_v2_reports_the_logprobs_of_the_old_runner(drafter, runners):
    for old, v2 in zip(*(runner[drafter]["logprobs"] for runner in runners), strict=True):
        np.testing.assert_allclose(v2, old, rtol=0, atol=1e-3)


# The runners batch a drafter's rows differently, and a sum in another order decides a near tie.
NEAR_TIES = 0.05


@pytest.mark.parametrize("drafter", DRAFT_MODELS)
def test_v2_drafts_and_accepts_as_often_as_the_old_runner(drafter, runners):
    old, v2 = runners
    expected, actual = old[drafter]["counters"], v2[drafter]["counters"]
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=NEAR_TIES, err_msg=name)
    assert actual["vllm:spec_decode_num_accepted_tokens"] > 0


def test_v2_has_vllm_s_own_n_grams(runners):
    """It goes on from the last match where the old runner takes the first, so counts differ."""
    for runner in runners:
        assert runner["ngram"]["counters"]["vllm:spec_decode_num_accepted_tokens"] > 20


def test_trees_on_cpus_need_no_triton():
    """Which CPU builds of vLLM come without."""
    program = """
import sys
sys.modules["triton"] = None
import vllm_smart.adapter.model_state, vllm_smart.adapter.drafter.speculator, vllm_smart.adapter.worker
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
