"""numba's cache, when the code of an entry point is spread over several files."""

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_smart.kernels.cpu.compiled import sources

ENTRY = """
from helper import add

def entry(version):
    def run(args):
        _ = version
        add(args)
    return run
"""
HELPER = """
import numba

@numba.njit
def add(args):
    args[0] += {number}
"""
MAIN = """
import sys
from pathlib import Path

import numpy as np
from entry import entry
from vllm_smart.kernels.cpu.compiled import compile_entry, source_version

version = source_version(Path()) if sys.argv[1] == "of sources" else sys.argv[1]
compiled = compile_entry(entry(version))
argument = np.zeros(1, np.int64)
compiled(argument.ctypes.data)
print(argument[0], compiled.keep_alive.cache_hits)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "entry.py").write_text(ENTRY)
    (tmp_path / "main.py").write_text(MAIN)

    def run(number: int, version: str) -> tuple[int, int]:
        """What compiled code adds where the helper says `number`, and how often the cache was hit."""
        (tmp_path / "helper.py").write_text(HELPER.format(number=number))
        command = [sys.executable, str(tmp_path / "main.py"), version]
        environment = {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            # Python's own cache tells files of one size apart by the second in which they were written.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        result, hits = done.stdout.split()
        return int(result), int(hits)

    return run


def test_a_change_of_another_file_is_noticed_and_none_is_a_hit(run):
    assert run(1, "of sources") == (1, 0)
    assert run(1, "of sources") == (1, 1)
    assert run(2, "of sources") == (2, 0)


def test_without_their_hash_it_would_not_be(run):
    assert run(1, "a word") == (1, 0)
    assert run(2, "a word") == (1, 1)


def test_all_modules_that_compiled_code_for_cpus_is_made_of_are_hashed():
    code = """
import sys
import vllm_smart.kernels.kv_compaction.cpu, vllm_smart.kernels.tree_attention.cpu
print(*(module.__file__ for name, module in sys.modules.items() if "vllm_smart.kernels" in name))
"""
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=path, check=True, capture_output=True)
    loaded = {Path(name) for name in done.stdout.decode().split()}
    assert len(loaded) > 10
    assert loaded <= set(sources())
