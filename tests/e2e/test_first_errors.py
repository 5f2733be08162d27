"""What a person reads last when a first start goes wrong: one sentence, with a way out that works."""

import json
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from vllm_smart.demo_model import demo_model_paths

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SHIPPED = {kind: str(path) for kind, path in demo_model_paths().items()}
HEAD = {"drafter": {"method": "eagle3", "model": "demo:eagle3"}}
VLLM = Path(sys.executable).with_name("vllm")


def serve(settings: dict, *flags: str, num_nodes: int = 8, **environment: str):
    """Arguments and environment of a `vllm serve` with these settings."""
    spec = {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": num_nodes}
    command = [str(VLLM), "serve", SHIPPED["target"], "--max-model-len", "256", "--enforce-eager"]
    command += ["--speculative-config", json.dumps(spec)]
    return [*command, *flags], settings, environment


def drafter(method: str, model: str) -> dict:
    return {"drafter": {"method": method, "model": model}}


@pytest.fixture(scope="module")
def a_drafter_of_other_words(tmp_path_factory):
    """The shipped draft model, but its configuration has another vocabulary."""
    folder = tmp_path_factory.mktemp("other-words")
    for file in demo_model_paths()["draft"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    return folder


@pytest.fixture(scope="module")
def a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def endings(tmp_path_factory, a_drafter_of_other_words, a_port_in_use):
    """The last line that each failed start prints, by its name, and how much of it is a traceback."""
    starts = {
        "a misspelt key": serve({**HEAD, "polices": {"name": "smart"}}),
        "another vocabulary": serve(drafter("draft_model", str(a_drafter_of_other_words))),
        "no EAGLE head": serve(drafter("eagle3", SHIPPED["target"])),
        "too large a tree": serve(HEAD, "--max-num-batched-tokens", "64", num_nodes=128),
        "a port in use": serve(HEAD, "--port", str(a_port_in_use)),
        "no memory": serve(HEAD, VLLM_CPU_KVCACHE_SPACE="100000"),
    }
    folder = tmp_path_factory.mktemp("endings")

    def ending(name: str) -> list[str]:
        command, settings, environment = starts[name]
        path = folder / f"{name.replace(' ', '-')}.yaml"
        path.write_text(yaml.safe_dump(settings))
        ended = subprocess.run(
            command,
            env={
                **os.environ,
                "VLLM_SMART_CONFIG": str(path),
                "HF_HUB_OFFLINE": "1",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode != 0, name
        return ended.stderr.rstrip().splitlines()

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(starts, pool.map(ending, starts), strict=True))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a misspelt key", r"\.yaml: polices is not a setting\. Known here: drafter, .*policy"),
        ("another vocabulary", r"vocabulary of 1000 tokens.* Use a drafter made for this target\."),
        ("no EAGLE head", r"is no EAGLE head: .* or set drafter\.method to draft_model"),
        ("too large a tree", r"--max-num-batched-tokens is 64\. Raise it, or lower the budget\."),
    ],
)
def test_a_mistake_is_one_sentence_without_a_traceback(endings, name, sentence):
    *_, last = endings[name]
    assert re.search(f"error: .*{sentence}", last), last
    assert not any("Traceback" in line for line in endings[name])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a port in use", r"The port is in use .* Pass another one: --port 8001\."),
        ("no memory", r"ValueError: .*VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory"),
    ],
)
def test_what_vllm_finds_out_ends_with_its_reason(endings, name, sentence):
    assert re.search(f"error: {sentence}", endings[name][-1]), endings[name][-3:]
