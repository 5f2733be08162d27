"""Engines are expensive: each is run once per session, over all runs that tests need of it."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.e2e import scenarios

ROOT = Path(__file__).parents[2]


def _interpreted(folder: Path) -> dict[str, str]:
    """Environment in which vLLM takes the kernels it has for GPUs, and the CPU interprets them."""
    backend = folder / "triton_on_cpu-0.dist-info"
    backend.mkdir(exist_ok=True)
    (backend / "METADATA").write_text("Metadata-Version: 2.1\nName: triton_on_cpu\nVersion: 0\n")
    (backend / "entry_points.txt").write_text("[triton.backends]\ncpu = tests.e2e.triton_on_cpu\n")
    path = [str(ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)}


@pytest.fixture(scope="session")
def run_engine(tmp_path_factory):
    """Function from an engine's name in `scenarios.ENGINES` to the results of its runs."""
    folder = tmp_path_factory.mktemp("engines")

    @cache
    def run(name: str) -> dict:
        job, result = folder / f"{name}.json", folder / f"{name}.result.json"
        job.write_text(json.dumps(scenarios.job(name)))
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
        if torch.cuda.is_available():
            environment["VLLM_SMART_TRY_CUDA"] = "1"
            environment["TRITON_F32_DEFAULT"] = "ieee"  # of vLLM's attention; ours asks for it
            if name.startswith("gpu"):
                environment["VLLM_GPU_SYNC_CHECK"] = "error"
        elif name.startswith("device"):
            environment.update(_interpreted(folder))
        process = subprocess.run(
            [sys.executable, "-m", "tests.e2e.driver", str(job), str(result)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1400,
        )
        assert process.returncode == 0, process.stderr[-6000:]
        return json.loads(result.read_text())

    run.folder = folder
    return run
