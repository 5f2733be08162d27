"""What operations' contracts bring with them when they are imported."""

import subprocess
import sys
from pathlib import Path

import vllm_smart.kernels

FOLDER = Path(vllm_smart.kernels.__file__).parent
OPERATIONS = sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))


def loaded_with(*modules: str) -> set[str]:
    """The packages that a new process has loaded once it has imported these."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    path = {"PYTHONPATH": str(FOLDER.parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=path, check=True, capture_output=True)
    return set(done.stdout.decode().split())


def test_no_contract_needs_triton_or_vllm():
    loaded = loaded_with(*(f"vllm_smart.kernels.{operation}" for operation in OPERATIONS))
    assert {"numba", "torch"} <= loaded
    assert not {"triton", "vllm"} & loaded


def test_deciding_and_replaying_need_no_torch():
    loaded = loaded_with("vllm_smart.scheduler", "vllm_smart.proposer", "vllm_smart.trace")
    assert "numba" in loaded
    assert "torch" not in loaded
