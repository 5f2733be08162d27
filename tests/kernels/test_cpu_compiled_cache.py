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


OF_ONE_FACTORY = """
import sys
import numba
import numpy as np
from vllm_smart.kernels.cpu.compiled import compile_entry, compiled_as

def factory(step, compiled):
    @compiled
    def add(args, times):
        for i in range(times):
{many_lines}
    return add

is_named = sys.argv[1] == "named"
# In the order in which they are asked for: numba numbers functions as they come.
made = {
    step: factory(int(step), compiled_as(step) if is_named else numba.njit) for step in sys.argv[2:]
}
ones, twos = made.get("1"), made.get("2")

def entry(step):
    def run_ones(args):
        ones(args, 12); ones(args, 13); ones(args, 14)
    def run_twos(args):
        twos(args, 12); twos(args, 13); twos(args, 14)
    return run_ones if step == 1 else run_twos

for step in sys.argv[2:]:
    compiled = compile_entry(entry(int(step)))
    argument = np.zeros(12, np.int64)
    compiled(argument.ctypes.data)
    print(step, argument.sum(), compiled.keep_alive.cache_hits)
"""


@pytest.mark.parametrize("names", ["named", "alike"])
def test_functions_of_one_factory_are_told_apart_by_name_alone(tmp_path, names):
    """The second process compiles one of them before it loads the other from the cache."""
    line = " " * 12 + "args[i % {0}] += args[i % 11] // {0} * 3 + step"
    many_lines = "\n".join(line.format(number) for number in range(2, 11))  # too many to be inlined
    text = OF_ONE_FACTORY.replace("{many_lines}", many_lines)
    (tmp_path / "of_one_factory.py").write_text(text)

    def results(*steps: str) -> dict[str, tuple[str, str]]:
        command = [sys.executable, "of_one_factory.py", names, *steps]
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            command, cwd=tmp_path, env=path, check=True, capture_output=True, text=True
        )
        return {step: tuple(rest) for step, *rest in map(str.split, done.stdout.splitlines())}

    (total, _) = results("1")["1"]
    loaded, hits = results("2", "1")["1"]
    assert int(hits) == 1
    assert (loaded == total) is (names == "named")
