"""`vllm serve` as a user runs it: several processes, compiled, streaming, metrics."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from itertools import islice

import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e import scenarios
from tests.e2e.serving import (
    NUM_TOKENS,
    client_of,
    engine_totals,
    metrics_text,
    plain_answers,
    serving,
    stats_of,
)
from tests.prometheus_lint import complaints
from tests.tool_calls.schemas import schemas
from vllm_smart.demo_model import held_out_prompts

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the server's caches and temporary files."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder):
    """Address of a server of the shipped pair with trees, behind two API servers."""
    trees = scenarios.with_trees("eagle3", scenarios.FIXED_TREE)
    trees["structured_outputs_config"] = scenarios.COMPACT
    flags = ["--api-server-count", "2", "--enable-auto-tool-choice", "--tool-call-parser", "pythonic"]
    flags += ["--per-request-spec-decode-metrics", "summary"]
    with serving(folder, trees, *flags) as address:
        yield address


def test_the_openai_client_gets_plain_decodings_text_whole_and_streamed(server, run_engine):
    client = client_of(server)
    for prompt, expected in islice(plain_answers(run_engine), 4):
        request = {"model": "demo", "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
        request["extra_body"] = {"ignore_eos": True, "return_token_ids": True}
        whole = client.completions.create(**request).choices[0]
        assert whole.token_ids == expected
        streamed = client.completions.create(**request, stream=True)
        assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == whole.text


def test_a_chat_streams(server):
    client = client_of(server)
    messages = [{"role": "user", "content": held_out_prompts()[-1]}]
    stream = client.chat.completions.create(
        model="demo", messages=messages, max_tokens=24, stream=True, seed=1
    )
    chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert chunks[-1].finish_reason in ("stop", "length")


def test_structured_output_is_valid(server):
    client = client_of(server)
    answer = client.completions.create(
        model="demo",
        prompt="import",
        max_tokens=40,
        temperature=1.0,
        seed=3,
        extra_body={"structured_outputs": {"regex": "(alpha|beta|gamma){3}[0-9]{4}"}},
    )
    assert len(answer.choices[0].text.lstrip("abeghlmpt")) == 4


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tools_are_called_whole_and_streamed(server, temperature):
    client, schemas_by_name = client_of(server), schemas(6)
    asked = {"temperature": temperature, "seed": 5, "max_tokens": 200, "model": "demo"}
    for name, schema in schemas_by_name.items():
        function = {"name": name, "parameters": schema}
        tool = {"type": "function", "function": function}
        request = {**asked, "messages": [{"role": "user", "content": "self.x ="}], "tools": [tool]}
        request["tool_choice"] = {"type": "function", "function": {"name": name}}
        whole = client.chat.completions.create(**request).choices[0].message.tool_calls[0].function
        streamed = ""
        for chunk in client.chat.completions.create(**request, stream=True):
            for call in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices else ():
                streamed += call.function.arguments or ""
        assert whole.name == name
        assert streamed == whole.arguments
        jsonschema.validate(json.loads(whole.arguments), schema)
    time.sleep(1.5)  # metrics are up to a second old
    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(metrics_text(server)):
        for sample in family.samples:
            counted[sample.labels.get("verdict", sample.name)] += sample.value
    assert counted["allowed"] > 50
    # But for trees that have grown before a grammar was compiled, on a busy machine.
    blind = counted["vllm_smart:trees_without_grammar_total"]
    assert counted["forbidden"] <= blind * scenarios.FIXED_TREE["num_nodes"]


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


def test_metrics_count_what_the_trees_did_beside_vllms_own_and_follow_their_rules(server, folder):
    """Whichever of two API servers is asked, and whichever has served."""
    client = client_of(server)
    client.completions.create(model="demo", prompt="import", max_tokens=24, temperature=0)
    time.sleep(1.5)  # it looks once a second
    for text in [metrics_text(server) for _ in range(8)]:
        assert list(complaints(text)) == []
        values = engine_totals(text, 0)
        assert values["vllm_smart:steps_total"] > 0
        drafted = values["vllm:spec_decode_num_draft_tokens_total"]
        assert values["vllm_smart:draft_nodes_total"] == drafted
        accepted = values["vllm:spec_decode_num_accepted_tokens_total"]
        assert drafted > values["vllm_smart:accepted_nodes_total"] == accepted > 0
        assert values["vllm_smart:engine_info"] == 1
        assert "vllm_smart:jit_compilations_total" in values
    assert [path for path in (folder / "tmp").iterdir() if "counters" in path.name] == []


def test_a_response_says_what_was_accepted_of_its_own_trees(server):
    def accepted() -> float:
        time.sleep(1.5)
        return engine_totals(metrics_text(server), 0)["vllm_smart:accepted_nodes_total"]

    before = accepted()
    answer = client_of(server).completions.create(
        model="demo", prompt="import", max_tokens=24, temperature=0
    )
    said = answer.model_extra["metrics"]["speculative_decoding"]
    assert 0 < said["num_accepted_draft_tokens"] < said["num_draft_tokens"]
    assert said["num_accepted_draft_tokens"] == accepted() - before


def test_the_page_tells_what_metrics_tell_whichever_api_server_is_asked(server):
    client = client_of(server)
    client.completions.create(model="demo", prompt="import", max_tokens=24, temperature=0)
    time.sleep(1.5)
    values = engine_totals(metrics_text(server), 0)
    for _ in range(4):
        (engine,) = stats_of(server, 0.5)
        assert engine["overall"]["steps"] == values["vllm_smart:steps_total"]
        assert engine["now"]["steps"] == 0
        assert engine["overall"]["info"]["policy"] == "fixed_tree"
        nodes = engine["tree"]
        assert 1 < len(nodes) <= 13
        assert nodes[0]["accepted"]
        for node in nodes[1:]:
            parents = [other for other in nodes if other["node"] == node["parent"]]
            assert [other["depth"] for other in parents] == [node["depth"] - 1]
            assert parents[0]["accepted"] or not node["accepted"]
        assert all("token" not in node for node in nodes)  # nobody has asked for texts


def test_the_page_is_read_only_and_says_what_it_cannot_do(server):
    for path, method, code in (
        ("/smart", "POST", 405),
        ("/smart/stats", "DELETE", 405),
        ("/smart?over=1e9", "GET", 400),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(server + path, method=method))
        assert refused.value.code == code


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's package chromium")
def test_a_browser_shows_the_page_and_refreshes_it(server, tmp_path):
    """The script replaces what it shows by what a server has done since."""
    client_of(server).completions.create(model="demo", prompt="def", max_tokens=24, temperature=0)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--timeout=9000"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=8000", "--dump-dom"]
    shown = subprocess.run([*command, f"{server}/smart"], capture_output=True, text=True, timeout=120)
    assert 'class="bar"' in shown.stdout
    assert 'class="node on"' in shown.stdout
    assert 'id="when">at ' in shown.stdout, "it was not refreshed"
