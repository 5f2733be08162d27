"""Two replicas of the shipped pair under Ray Serve, one of which is killed under streams."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vllm_smart import client

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("loopback_alone")]
ROOT = Path(__file__).parents[2]
PORT, METRICS_PORT = 18200, 18215
URL = f"http://127.0.0.1:{PORT}/v1/completions"
PROMPTS = [
    "def read_lines(path):\n",
    "class Tree:\n",
    "import os\n",
    "for i in range(",
    "# A test of ",
    "x",
]


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Iterator[Path]:
    """The log of `examples/ray_serve.py`, which serves by now."""
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, str(ROOT / "examples/ray_serve.py"), "--small", "--port", str(PORT)]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--metrics-port", str(METRICS_PORT)], stdout=out, stderr=out, cwd=ROOT
        )
        try:
            while "Ready: " not in log.read_text():
                assert process.poll() is None, log.read_text()[-4000:]
                time.sleep(1)
            yield log
        finally:
            process.terminate()
            process.wait(timeout=120)


def exported(name: str, label: str = "ReplicaId") -> dict[str, float]:
    """A metric on Ray's port, by replica."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    values: dict[str, float] = {}
    for line in lines:
        if line.startswith(f"ray_{name}{{"):
            replica = line.partition(f'{label}="')[2].partition('"')[0]
            values[replica] = values.get(replica, 0.0) + float(line.rpartition(" ")[2])
    return values


def replicas() -> list[int]:
    """Processes of all engines' front ends."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return [
        int(line.split()[0])
        for line in found.stdout.splitlines()
        if "ServeReplica:llm:SmartLLMServer" in line
    ]


def request(prompt: str, num_tokens: int, **more) -> dict:
    wanted = {"model": "demo", "prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True}
    return wanted | {"temperature": 0.8, "seed": 7, **more}


def answer(
    prompt: str, num_tokens: int, has_begun: set[str] | None = None, **more
) -> tuple[str, list[int]]:
    pieces = []
    for piece in client.stream(URL, request(prompt, num_tokens, **more)):
        pieces.append(piece)
        if has_begun is not None:
            has_begun.add(prompt)
    return "".join(p.text for p in pieces), [token for p in pieces for token in p.token_ids]


def test_the_clients_of_the_readme_are_answered(example):
    from openai import OpenAI

    served = OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none").completions
    both = [
        served.create(model="demo", prompt=PROMPTS[0], max_tokens=48, temperature=0, extra_body=body)
        for body in ({}, {"vllm_xargs": {"smart_max_nodes": 0}})
    ]
    assert both[0].choices[0].text == both[1].choices[0].text
    assert both[0].usage.completion_tokens == 48


def test_both_replicas_count_on_rays_port(example):
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: answer(PROMPTS[n % 6], 64, seed=n), range(24)))
    for _ in range(60):
        steps, nodes = exported("vllm_smart_steps_total"), exported("vllm_smart_draft_nodes_total")
        if len(steps) == len(nodes) == 2:
            break
        time.sleep(1)
    assert len(steps) == 2
    assert min(*steps.values(), *nodes.values()) > 0
    assert len(exported("vllm_smart_plain_seconds_total")) == 2


def test_replicas_tell_autoscaling_what_pays(example):
    asked = exported("serve_user_autoscaling_stats_latency_ms_count", "replica")
    assert len(asked) == 2
    assert min(asked.values()) > 0
    assert not exported("serve_record_autoscaling_stats_failed_total", "replica")


def test_one_replica_measures_for_both(example):
    for _ in range(240):
        text = example.read_text()
        if "costs measured while idle" in text and " reused." in text:
            break
        time.sleep(1)
    text = example.read_text()
    assert text.count("costs measured while idle") == 1
    assert "the Ray cluster" in text


def test_streams_of_a_killed_replica_go_on_with_the_same_text(example):
    most = 700
    plain = [answer(prompt, most, vllm_xargs={"smart_max_nodes": 0}) for prompt in PROMPTS]
    assert [len(tokens) for _, tokens in plain] == [most] * len(PROMPTS)
    # Without the helper: a stream that ends as if it were complete, and has no reason to.
    cut: list[Exception] = []
    has_begun: set[str] = set()
    stock = client._Answer._place_to_resume

    def noted(self, broken):
        cut.append(broken)
        return stock(self, broken)

    client._Answer._place_to_resume = noted
    try:
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            streams = [pool.submit(answer, prompt, most, has_begun) for prompt in PROMPTS]
            while len(has_begun) < len(PROMPTS):
                assert not all(stream.done() for stream in streams)
                time.sleep(0.05)
            victim, *others = replicas()
            assert others
            os.kill(victim, signal.SIGKILL)
            resumed = [stream.result() for stream in streams]
    finally:
        client._Answer._place_to_resume = stock
    assert cut, "the kill came too late: no stream was cut"
    assert len(cut) < len(PROMPTS), "the other replica's streams are not touched"
    assert resumed == plain
