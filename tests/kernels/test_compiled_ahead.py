"""Loops that are compiled in a process of their own, before the engine needs them."""

import fcntl
import importlib
import os
import threading

import numpy as np
import pytest
import torch

from vllm_smart.kernels.cpu import ahead
from vllm_smart.kernels.cpu.launch import compiled, compiled_kernel
from vllm_smart.kernels.cpu.loops import Loop, loops_of

ENGINES = ("eagle 16-bit", "eagle3+ngram 16-bit", "draft_model 32-bit", "ngram 32-bit")


@compiled
def scaled(values, flags, factor):
    return values[0] * factor if flags[0] else values[1]


@compiled_kernel
def raised(values, other, by):
    values[0, 0] += by if other is None else 0


@pytest.mark.parametrize(
    "call",
    [
        (np.ones(2, np.float32), np.ones(2, np.bool_), 2.0),
        (np.ones(4, np.int32)[::2], np.ones(2, np.bool_), 3),
        ((1.0, 2.0), (True, False), 2),
    ],
)
def test_a_call_written_down_compiles_what_it_needs(call):
    scaled(*call)
    used = scaled.signatures[-1]
    loop = Loop.parse(vars(Loop.of(scaled, used)))
    scaled._reset_overloads()
    loop.compile()
    assert scaled.signatures == [used]


def test_so_does_one_of_an_entry():
    entry = raised.entry("int64_2 none value")
    assert Loop.of(entry, ()).kinds == "int64_2 none value"
    values = torch.zeros(1, 1, dtype=torch.int64)
    raised(values, None, 3)
    assert values.item() == 3
    Loop(__name__, "raised", "int64, int64, int64, int64", "int64_2 none value").compile()


def test_types_without_a_notation_are_refused():
    with pytest.raises(TypeError, match="no notation"):
        Loop.of(scaled, (compiled,))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_loops_of_an_engine_exist(engine):
    loops = loops_of(engine)
    assert len(loops) > 10
    for loop in loops:
        assert hasattr(importlib.import_module(loop.module), loop.function), loop


def test_engines_that_were_not_recorded_get_what_all_need():
    common = set(loops_of("another 16-bit"))
    assert common
    assert all(common <= set(loops_of(engine)) for engine in ENGINES)


def test_an_engine_waits_for_the_process_and_not_for_ever(tmp_path):
    assert ahead.wait_for_compiling(tmp_path), "nobody has ever compiled here"
    held = (tmp_path / ahead._LOCK).open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    assert not ahead.wait_for_compiling(tmp_path, most_s=0.1)
    threading.Timer(0.2, held.close).start()
    assert ahead.wait_for_compiling(tmp_path, most_s=60)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Commands that were started, and the files that they hold open."""
    started = []
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    def start(command, pass_fds, **_):
        started.append((command, [os.dup(fd) for fd in pass_fds]))  # as a child has it

    monkeypatch.setattr(ahead.subprocess, "Popen", start)
    return started


def test_one_process_is_started_and_holds_the_lock_until_it_ends(started, tmp_path):
    ahead.start_compiling("ngram", "float32", tmp_path)
    ahead.start_compiling("eagle", "float32", tmp_path)  # an engine that is started meanwhile
    ((command, (lock,)),) = started
    assert command[-4:] == ["vllm_smart.kernels.cpu.ahead", "ngram", "float32", str(tmp_path)]
    assert not ahead.wait_for_compiling(tmp_path, most_s=0.1)
    os.close(lock)
    assert ahead.wait_for_compiling(tmp_path, most_s=0.1)


def test_a_loop_that_is_no_more_is_named_and_the_others_are_compiled(
    started, tmp_path, monkeypatch, capsys
):
    gone = Loop(__name__, "gone", "int64")
    there = Loop(__name__, "scaled", "float64[::1], boolean[::1], float64")
    monkeypatch.setattr("vllm_smart.kernels.cpu.loops.loops_of", lambda engine: [there, gone])
    scaled._reset_overloads()
    ahead.compile_all("eagle", "float32", tmp_path)
    assert "'gone'" in capsys.readouterr().err
    assert len(scaled.signatures) == 1


def test_none_is_started_where_all_is_compiled(started, tmp_path, monkeypatch):
    monkeypatch.setattr("vllm_smart.kernels.cpu.loops.loops_of", lambda engine: [])
    ahead.compile_all("eagle", "float32", tmp_path)
    ahead.start_compiling("eagle", "float32", tmp_path)
    assert not started
    ahead.start_compiling("eagle", "bfloat16", tmp_path)
    assert len(started) == 1
    monkeypatch.setattr(ahead, "version", lambda name: "another")
    os.close(started[0][1][0])
    ahead.start_compiling("eagle", "float32", tmp_path)
    assert len(started) == 2
