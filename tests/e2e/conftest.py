"""Engines are expensive: each is run once per session, over all runs that tests need of it.

Also where several pytest workers share the session: the first to ask runs an engine, the others wait.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.e2e import driver, scenarios
from tests.e2e.caches import caches_in

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
def engines_folder(tmp_path_factory) -> Path:
    """Where engines leave their files, each in a folder of its own; the same for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "engines"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def run_engine(engines_folder):
    """Function from an engine's name in `scenarios.ENGINES` to the results of its runs."""

    @cache
    def run(name: str) -> dict:
        folder = engines_folder / name.replace(" ", "-")
        with FileLock(f"{folder}.lock"):
            if not (folder / "result.json").exists():
                folder.mkdir(exist_ok=True)
                _run(name, folder, engines_folder)
        return json.loads((folder / "result.json").read_text())

    return run


def _run(name: str, folder: Path, shared: Path) -> None:
    """Run the engine called `name`; its results go to `folder`, its caches to `shared`."""
    (folder / "job.json").write_text(json.dumps(scenarios.job(name)))
    environment = {**os.environ, **caches_in(shared)}
    if not torch.cuda.is_available() and not name.startswith("device"):
        return _fork(folder, environment)
    if torch.cuda.is_available():
        environment["VLLM_SMART_TRY_CUDA"] = "1"
        environment["TRITON_F32_DEFAULT"] = "ieee"  # of vLLM's attention; ours asks for it
        if name.startswith("gpu"):
            environment["VLLM_GPU_SYNC_CHECK"] = "error"
    else:
        environment.update(_interpreted(shared))
    process = subprocess.run(
        [
            *(sys.executable, "-m", "tests.e2e.driver"),
            *(str(folder / "job.json"), str(folder / "result.json")),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert process.returncode == 0, process.stderr[-6000:]


def _fork(folder: Path, environment: dict[str, str]) -> None:
    """Run the engine of `folder` in a process that finds vLLM imported, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.e2e.preloaded"])
    process = context.Process(target=driver.run_in, args=(str(folder), environment))
    process.start()
    try:
        process.join(timeout=1400)
    finally:
        process.kill()
    assert process.exitcode == 0, (folder / "log").read_text()[-6000:]
