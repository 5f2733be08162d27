"""Contract with vLLM: each Triton kernel we stand in for exists, and computes what ours does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adapter.cpu.kernel_cases import cases
from vllm_smart.mrv2_cpu.registry import cpu_kernels

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def complaints(tmp_path_factory) -> dict[str, str]:
    """What is wrong with each kernel; one process compares them all."""
    report = tmp_path_factory.mktemp("kernels") / "complaints.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.adapter.cpu.compare_kernels", str(report)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "VLLM_PLUGINS": "none"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-6000:]
    return json.loads(report.read_text())


def test_every_cpu_kernel_has_launches_to_be_compared_with():
    assert set(cases()) == {name.removeprefix("vllm.v1.worker.gpu.") for name in cpu_kernels()}


@pytest.mark.parametrize("name", cases())
def test_cpu_kernel_equals_the_triton_kernel(name, complaints):
    assert complaints[name] == ""
