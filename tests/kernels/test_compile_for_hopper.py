"""What Triton's interpreter cannot see: whether a real compiler takes the kernels, and how well."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def kernels() -> list[dict]:
    process = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_for_hopper"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout)


def test_every_kernel_compiles_for_hopper(kernels):
    names = {"_arrange", "_attend", "_reduce", "_walk", "_compact_slots"}
    names |= {"_settle", "_begin", "_frontier", "_place_rows", "_count_best", "_add_children"}
    names |= {"_order", "_sort", "_best_prefix", "_count_chosen", "_plant", "_report"}
    names |= {"_fill_room", "_starts", "_place_reads", "_gather_rows"}
    names |= {"_top_of_block", "_merge_blocks"}
    assert {kernel["name"] for kernel in kernels} == names


def test_no_kernel_overflows_its_registers(kernels):
    few = 32  # bytes of a thread, outside the loops: head sizes that are no power of two
    assert [kernel for kernel in kernels if kernel["stack_bytes"] > few] == []


@pytest.mark.parametrize("name", ["_compact_slots", "_top_of_block"])
def test_what_moves_much_moves_16_bytes_at_a_time(kernels, name):
    assert all(kernel["wide_loads"] for kernel in kernels if kernel["name"] == name)


def test_attention_over_a_tree_of_32_uses_the_tensor_cores_of_hopper(kernels):
    assert [kernel["wgmma"] for kernel in kernels if kernel["name"] == "_attend"].count(True) >= 3
