"""With empty caches: loops are compiled ahead, and everything before the first request comes."""

import json
import os
import subprocess
import sys

import pytest

from tests.e2e import scenarios
from tests.e2e.caches import caches_in
from tests.e2e.conftest import ROOT
from tests.e2e.record_loops import job as start_job

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
NUM_REQUESTS = 2
NUM_PREEMPTED = 16  # more than there is memory for at once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the results of an engine whose loops were compiled ahead, and by nobody else."""
    folder = tmp_path_factory.mktemp("cold")
    most = scenarios.TIGHT["max_model_len"]
    names = (*scenarios.SAMPLING, "grammar")
    runs = [scenarios.sampling_run(name, NUM_REQUESTS, max_len=most) for name in names]
    greedy = runs[0]
    capped = [{**each, "extra_args": {"smart_max_nodes": 0}} for each in greedy["params"]]
    runs.append({**greedy, "name": "without drafts", "params": capped})
    runs += scenarios.under({"name": "off"}, [greedy], "off ")
    many = [scenarios.sampling_run(name, NUM_PREEMPTED, max_len=most) for name in names[:2]]
    runs += scenarios.under(scenarios.FIXED_TREE, many, "again ")
    job = start_job("eagle3", "bfloat16")
    job["engine"]["max_logprobs"] = 20
    (folder / "job.json").write_text(json.dumps({**job, "runs": runs}))
    ahead = ["vllm_smart.kernels.cpu.ahead", "eagle3", "bfloat16", str(folder)]
    driver = ["tests.e2e.driver", str(folder / "job.json"), str(folder / "result.json")]
    for module in (ahead, driver):
        process = subprocess.run(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env={**os.environ, **caches_in(folder), "NUMBA_CACHE_DIR": str(folder / "numba")},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert process.returncode == 0, process.stderr[-6000:]
        assert "is not compiled ahead" not in process.stderr
        assert list((folder / "numba").rglob("*.nbi")), "nothing was compiled here"
    return folder


@pytest.fixture(scope="module")
def cold_runs(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_start_compiles_no_loop_that_was_not_compiled_ahead(folder):
    """If this fails, a kernel has changed: `python -m tests.e2e.record_loops`."""
    assert json.loads((folder / "loops.json").read_text()) == []


def test_no_request_waits_for_a_compilation(cold_runs):
    compiled = {name: run["smart_counters"]["jit_compilations"] for name, run in cold_runs.items()}
    assert set(compiled.values()) == {0.0}, compiled
    preemptions = cold_runs["again greedy"]["counters"]["vllm:num_preemptions"]
    assert preemptions > 0


def test_what_the_rehearsal_taught_and_counted_is_forgotten(cold_runs):
    first = cold_runs["greedy"]["smart_counters"]
    assert first["trees"] > 0
    assert first["steps"] <= NUM_REQUESTS * scenarios.NUM_TOKENS


def test_a_request_without_drafts_runs_no_drafter(cold_runs):
    counted = cold_runs["without drafts"]["smart_counters"]
    assert counted["steps"] > 0
    assert counted["steps_without_drafting"] == counted["steps"]
    assert counted["draft_nodes"] == counted["rows_read"] == 0
    ids = {
        name: [output[0]["token_ids"] for output in cold_runs[name]["outputs"]]
        for name in ("greedy", "without drafts")
    }
    assert ids["greedy"] == ids["without drafts"]
