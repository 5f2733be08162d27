"""`vllm serve` as a user runs it: several processes, compiled, streaming, metrics."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e import scenarios
from tests.prometheus_lint import complaints
from vllm_smart.demo_model import demo_model_paths, held_out_prompts

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
NUM_TOKENS = 48
MAX_MODEL_LEN = 512


@pytest.fixture(scope="module")
def engine_tmp(tmp_path_factory):
    """Where the server's processes put temporary files."""
    return tmp_path_factory.mktemp("tmp")


@pytest.fixture(scope="module")
def server(tmp_path_factory, engine_tmp):
    """Base address of a server of the shipped pair with trees, behind two API servers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    trees = scenarios.with_trees("eagle3")
    trees["additional_config"]["smart"]["policy"] = scenarios.FIXED_TREE
    command = [Path(sys.executable).parent / "vllm", "serve", demo_model_paths()["target"]]
    command += ["--served-model-name", "demo", "--port", str(port), "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--api-server-count", "2"]
    command += [
        "--max-model-len",
        str(MAX_MODEL_LEN),
        "--max-num-seqs",
        "8",
        "--gpu-memory-utilization",
        "0.3",
    ]
    for flag, value in trees.items():
        command += ["--" + flag.replace("_", "-"), json.dumps(value)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {
        "VLLM_NO_USAGE_STATS": "1",
        "XDG_CACHE_HOME": str(folder),
        "TMPDIR": str(engine_tmp),
    }
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    environment["VLLM_NO_USAGE_STATS"] = "1"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            assert process.poll() is None, (folder / "log").read_text()[-6000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def test_the_openai_client_gets_plain_decodings_text_whole_and_streamed(server, run_engine):
    from openai import OpenAI

    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    reference = run_engine("plain")["greedy"]["outputs"]
    prompts = scenarios.sampling_run("greedy", scenarios.NUM_REQUESTS)["prompts"]
    short = [i for i, prompt in enumerate(prompts) if len(prompt) < MAX_MODEL_LEN - NUM_TOKENS]
    for index in short[:4]:
        prompt = prompts[index]
        request = {"model": "demo", "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
        request["extra_body"] = {"ignore_eos": True, "return_token_ids": True}
        whole = client.completions.create(**request).choices[0]
        assert whole.token_ids == reference[index][0]["token_ids"][:NUM_TOKENS]
        streamed = client.completions.create(**request, stream=True)
        assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == whole.text


def test_a_chat_streams(server):
    from openai import OpenAI

    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    messages = [{"role": "user", "content": held_out_prompts()[-1]}]
    stream = client.chat.completions.create(
        model="demo", messages=messages, max_tokens=24, stream=True, seed=1
    )
    chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert chunks[-1].finish_reason in ("stop", "length")


def test_structured_output_is_valid(server):
    from openai import OpenAI

    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    answer = client.completions.create(
        model="demo",
        prompt="import",
        max_tokens=40,
        temperature=1.0,
        seed=3,
        extra_body={"structured_outputs": {"regex": "(alpha|beta|gamma){3}[0-9]{4}"}},
    )
    assert len(answer.choices[0].text.lstrip("abeghlmpt")) == 4


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"min_p": 0.1}, "min_p"),
        ({"stop_token_ids": list(range(100, 300)), "min_tokens": 5}, "at most 128 stop tokens"),
        ({"allowed_token_ids": list(range(1025))}, "at most 1024 allowed token ids"),
        ({"vllm_xargs": {"smart_weight": "heavy"}}, "smart_weight='heavy'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(server, asked, message):
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    with pytest.raises(BadRequestError, match=message):
        client.completions.create(model="demo", prompt="x", extra_body=asked)
    assert client.completions.create(model="demo", prompt="x", max_tokens=2).choices[0].text


def test_metrics_count_what_the_trees_did_beside_vllms_own_and_follow_their_rules(server, engine_tmp):
    """Whichever of two API servers is asked, and whichever has served."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    client.completions.create(model="demo", prompt="import", max_tokens=24, temperature=0)
    time.sleep(1.5)  # it looks once a second
    texts = [urllib.request.urlopen(f"{server}/metrics").read().decode() for _ in range(8)]
    for text in texts:
        assert list(complaints(text)) == []
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("engine") == "0":
                    values[sample.name] = values.get(sample.name, 0.0) + sample.value
        assert values["vllm_smart:steps_total"] > 0
        drafted = values["vllm:spec_decode_num_draft_tokens_total"]
        assert values["vllm_smart:draft_nodes_total"] == drafted
        accepted = values["vllm:spec_decode_num_accepted_tokens_total"]
        assert drafted > values["vllm_smart:accepted_nodes_total"] == accepted > 0
        assert values["vllm_smart:engine_info"] == 1
        assert "vllm_smart:jit_compilations_total" in values
    assert [path for path in engine_tmp.iterdir() if "counters" in path.name] == []
