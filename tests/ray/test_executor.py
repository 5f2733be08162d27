"""An engine whose worker Ray has put on another machine: one with file systems of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e import scenarios
from tests.e2e.serving import client_of, engine_totals, metrics_text, serving

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("loopback_alone")]
HEAD, OTHER, PORT = "127.0.0.1", "127.0.0.2", 6390
_RAY = str(Path(sys.executable).with_name("ray"))
_PATH = os.pathsep.join([str(Path(__file__).parent / "cpus_as_gpus"), str(Path(__file__).parents[2])])


@contextmanager
def machine(address: str, *flags: str, apart: bool = False) -> Iterator[None]:
    """A machine of a cluster.

    Args:
        address: of it.
        flags: of `ray start`.
        apart: whether what others write to temporary files is out of its sight.
    """
    command = [_RAY, "start", "--block", "--node-ip-address", address, "--disable-usage-stats", *flags]
    command += ["--min-worker-port", "0", "--max-worker-port", "0"]  # both share their ports
    if apart:
        hidden = "mount -t tmpfs none /tmp && exec "
        command = ["unshare", "--mount", "sh", "-c", hidden + " ".join(command)]
    environment = {**os.environ, "PYTHONPATH": _PATH, "VLLM_HOST_IP": address, "TMPDIR": "/tmp"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    time.sleep(5)
    assert process.poll() is None, f"`{' '.join(command)}` has ended"
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """Address of a server on a machine that has no accelerator."""
    cluster = ["--address", f"{HEAD}:{PORT}"]
    with (
        machine(HEAD, "--head", "--port", str(PORT), "--num-gpus", "0", "--include-dashboard", "false"),
        machine(OTHER, *cluster, "--num-gpus", "1", "--dashboard-agent-listen-port", "0", apart=True),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_ADDRESS", f"{HEAD}:{PORT}")
        patch.setenv("VLLM_HOST_IP", HEAD)
        patch.setenv("PYTHONPATH", _PATH)
        _wait_for_accelerator()
        trees = scenarios.with_trees("eagle3", scenarios.FIXED_TREE)
        flags = ["--enforce-eager", "--distributed-executor-backend", "ray"]
        with serving(tmp_path_factory.mktemp("front-end"), trees, *flags) as address:
            yield address


def _wait_for_accelerator() -> None:
    """Until both machines are there."""
    code = "import ray; ray.init('auto', logging_level='ERROR'); print(ray.cluster_resources())"
    for _ in range(60):
        asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if "'GPU': 1.0" in asked.stdout:
            return
        time.sleep(1)
    raise AssertionError(asked.stdout + asked.stderr[-2000:])


def test_counters_come_home_from_another_machine_and_the_text_is_plain(server):
    texts = [
        client_of(server)
        .completions.create(
            model="demo", prompt="def read(path):\n", max_tokens=48, temperature=0, extra_body=more
        )
        .choices[0]
        .text
        for more in ({}, {"vllm_xargs": {"smart_max_nodes": 0}})
    ]
    assert texts[0] == texts[1]
    time.sleep(12)  # engines elsewhere are asked every five seconds
    counted = engine_totals(metrics_text(server), 0)
    assert counted["vllm_smart:engine_info"] == 1
    drafted = counted["vllm:spec_decode_num_draft_tokens_total"]
    assert counted["vllm_smart:draft_nodes_total"] == drafted > 0
