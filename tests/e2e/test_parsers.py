"""Parsers of reasoning and of tool calls, streaming: a tree brings several tokens at once to them."""

import json
import time

import pytest

from tests.e2e import scenarios
from tests.e2e.serving import client_of, engine_totals, metrics_text, serving

pytestmark = pytest.mark.vllm
CALL = r'\[look_up\(word="[a-z]{3,12}", limit=[1-9][0-9]{0,3}, exact=(True|False)\)\]'
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "additionalProperties": True}},
}
ASKED = ("self.x =", "def open_file(", "import os", "class Node:")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the server's log, caches and temporary files."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder):
    """Address of a server with trees whose model reasons until its first line ends."""
    (folder / "reasoning.py").write_text(scenarios.REASONING)
    trees = scenarios.with_trees("eagle3", scenarios.FIXED_TREE)
    trees |= {"structured_outputs_config": scenarios.COMPACT, "enforce_eager": True}
    trees["reasoning_config"] = {"reasoning_start_str": "def", "reasoning_end_str": "\n"}
    flags = ("--reasoning-parser-plugin", str(folder / "reasoning.py"), "--reasoning-parser", "a_line")
    flags += ("--enable-auto-tool-choice", "--tool-call-parser", "pythonic")
    with serving(folder, trees, *flags) as address:
        yield address


def whole_and_streamed(client, **asked) -> tuple[list, list]:
    """Reasoning, content and calls, answered at once and streamed."""
    asked = {"model": "demo", "max_tokens": 160, "seed": 7, **asked}
    message = client.chat.completions.create(**asked).choices[0].message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    whole = [getattr(message, "reasoning", None) or "", message.content or "", calls]
    reasoning = content = ""
    parts: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning", None) or ""
        content += delta.content or ""
        for call in delta.tool_calls or ():
            name, arguments = parts.setdefault(call.index, ["", ""])
            parts[call.index] = [
                name + (call.function.name or ""),
                arguments + (call.function.arguments or ""),
            ]
    # Spaces may belong to the token that ends reasoning, which the text alone does not tell.
    return whole, [reasoning, content.lstrip(), [tuple(parts[index]) for index in sorted(parts)]]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_reasoning_and_what_a_grammar_binds_after_it_stream_as_they_are_answered(server, temperature):
    client = client_of(server)
    schema = {"type": "object", "properties": {"limit": {"enum": [1, 20]}}, "required": ["limit"]}
    schema["additionalProperties"] = False
    ended = 0
    for text in ASKED:
        whole, streamed = whole_and_streamed(
            client,
            messages=[{"role": "user", "content": text}],
            temperature=temperature,
            extra_body={"structured_outputs": {"json": schema}},
        )
        assert streamed == whole
        if whole[1]:
            ended += 1
            assert json.loads(whole[1])["limit"] in (1, 20)
    assert ended >= len(ASKED) // 2


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tool_calls_after_reasoning_stream_as_they_are_answered(server, temperature):
    client, called = client_of(server), 0
    for text in ASKED:
        whole, streamed = whole_and_streamed(
            client,
            messages=[{"role": "user", "content": text}],
            temperature=temperature,
            tools=[TOOL],
            tool_choice="auto",
            extra_body={"structured_outputs": {"regex": CALL}},
        )
        assert streamed == whole
        for name, arguments in whole[2]:
            called += 1
            assert name == "look_up"
            assert json.loads(arguments).keys() == {"word", "limit", "exact"}
    assert called >= len(ASKED) // 2


def test_a_thinking_budget_is_kept_and_the_log_says_that_it_gets_chains(server, folder):
    client = client_of(server)
    told = "requests with a thinking budget get chains"
    assert told not in (folder / "log").read_text()
    for bound in ({}, {"structured_outputs": {"regex": "(alpha|beta){2}"}}):
        whole, streamed = whole_and_streamed(
            client,
            messages=[{"role": "user", "content": "class Node:"}],
            temperature=0.0,
            extra_body={"thinking_token_budget": 4, **bound},
        )
        assert streamed == whole
        if bound:
            assert len(whole[1].replace("alpha", "x").replace("beta", "x")) == 2
    assert (folder / "log").read_text().count(told) == 1


def test_all_that_was_on_trees(server):
    time.sleep(1.5)  # metrics are up to a second old
    totals = engine_totals(metrics_text(server), 0)
    assert totals["vllm_smart:accepted_nodes_total"] > 50
