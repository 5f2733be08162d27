"""A second start takes the code that the first has compiled, and nothing else of it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e import scenarios
from tests.e2e.caches import caches_in
from tests.e2e.conftest import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
NUM_REQUESTS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def start(folder):
    """Function that starts an engine on the target in `folder`, compiled; returns texts by run."""

    def run(settings: dict) -> dict:
        most = scenarios.TIGHT["max_model_len"]
        runs = [
            scenarios.sampling_run(name, NUM_REQUESTS, max_len=most)
            for name in ("greedy", "temperature")
        ]
        base = {"model": str(folder / "target"), "dtype": "bfloat16", "seed": 0}
        job = {"engine": {**base, **scenarios.TIGHT, **settings}, "runs": runs}
        (folder / "job.json").write_text(json.dumps(job))
        process = subprocess.run(
            [
                *(sys.executable, "-m", "tests.e2e.driver"),
                *(str(folder / "job.json"), str(folder / "result.json")),
            ],
            cwd=ROOT,
            env={**os.environ, **caches_in(folder)},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert process.returncode == 0, process.stderr[-6000:]
        results = json.loads((folder / "result.json").read_text())
        return {name: [o[0]["token_ids"] for o in run["outputs"]] for name, run in results.items()}

    return run


def test_a_later_start_loads_code_and_takes_its_own_weights(start, folder):
    """Control: with the first weights texts are others."""
    shutil.copytree(scenarios.demo_model_paths()["target"], folder / "target")
    trees = scenarios.with_trees("eagle3", scenarios.FIXED_TREE)
    before = start(trees)
    saved = {path: path.stat().st_mtime_ns for path in _saved(folder)}
    assert len(saved) == 2, "vLLM has not saved target and drafter"

    _change_weights(folder / "target")
    after = start(trees)
    assert {path: path.stat().st_mtime_ns for path in _saved(folder)} == saved
    assert after == start({})
    assert after["greedy"] != before["greedy"]


def _saved(folder):
    return list((folder / "vllm" / "torch_compile_cache" / "torch_aot_compile").glob("*/*/model"))


def _change_weights(target):
    """By noise in every matrix of every layer."""
    noise = torch.Generator().manual_seed(0)
    for path in target.glob("*.safetensors"):
        weights = load_file(path)
        for name, weight in weights.items():
            if ".layers." in name and weight.ndim == 2:
                by = 1 + 0.3 * torch.randn(weight.shape, generator=noise)
                weights[name] = (weight.float() * by).to(weight.dtype)
        save_file(weights, path, metadata={"format": "pt"})
