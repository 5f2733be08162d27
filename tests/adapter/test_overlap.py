"""The drafter's process from outside: its cores, its end, and how its worker takes that."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.vllm

_CHILD = """
import os
from vllm_smart.adapter.overlap.drafter_process import _end_with
_end_with(os.getppid())
"""
_PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {_CHILD!r}], process_group=0)
print(child.pid, flush=True)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("stopped", [False, True])
def test_a_drafter_does_not_outlive_a_worker_that_is_killed(stopped):
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1.0)  # until it watches
    assert is_running(child)
    if stopped:
        os.kill(child, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


@pytest.fixture
def four_cores(monkeypatch):
    import torch

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.parametrize(
    ("cores", "threads", "chosen"),
    [(None, None, ([], 1)), (None, 2, ([], 2)), ([3], None, ([3], 1)), ([2, 3], None, ([2, 3], 2))],
)
def test_cores_that_the_target_leaves_are_the_drafters(four_cores, cores, threads, chosen):
    from vllm_smart.adapter.overlap.remote_drafter import choose_cores

    assert choose_cores(cores, threads) == chosen


@pytest.mark.parametrize(
    ("cores", "threads", "message"),
    [
        (
            [1, 2, 3],
            None,
            r"cores=\[1, 2, 3\] overlap .* 2 threads. .*OMP_NUM_THREADS.* inline",
        ),
        ([4], None, r"cores=\[4\]: this process may not run on core 4. Choose among \[0, 1, 2"),
        (
            None,
            3,
            "placement='process': there are 4 cores, and the target alone has 2 threads.* inline",
        ),
    ],
)
def test_cores_that_the_target_needs_are_refused(four_cores, cores, threads, message):
    from vllm_smart.adapter.overlap.remote_drafter import choose_cores
    from vllm_smart.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        choose_cores(cores, threads)
