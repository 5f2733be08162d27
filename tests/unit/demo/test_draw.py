"""Trees of an answer are those of the trace, with the accepted path marked."""

import re

import pytest
from rich.console import Console

from tests.unit.trace.fake_engine import FakeEngine, settings
from vllm_smart.demo.draw import answer_with_paths, drawn_steps, steps_of, wait_for_steps
from vllm_smart.kernels.evidence import BOTH, NGRAM
from vllm_smart.trace import read_steps_after, read_trace

REQUEST = "request-1"


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "steps"
    config = settings("fixed_tree")
    FakeEngine(3, config).record(path, config, num_steps=12)
    return path


def printed(renderable) -> str:
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def name(token: int) -> str:
    return f"<{token}>"


def test_all_verified_nodes_are_drawn_and_those_accepted_are_ticked(trace):
    steps = steps_of(REQUEST, read_trace(trace).steps)
    lines = printed(drawn_steps(steps, len(steps), name)).splitlines()
    nodes = [line for line in lines if "<" in line]
    ticked = [line for line in nodes if "✔" in line]
    drawn = [step for step in steps if step.num_nodes]
    assert len(drawn) > 3
    assert len(ticked) == sum(len(step.verified.accepted) for step in drawn) > 0
    own = [line for line in nodes if "the target's own" in line]
    assert len(own) == len(drawn)
    assert len(nodes) == sum(step.num_nodes for step in drawn) + len(own)


def test_a_node_is_drawn_below_its_parent(trace):
    steps = [s for s in steps_of(REQUEST, read_trace(trace).steps) if len(s.verified.accepted) > 1]
    text = printed(drawn_steps(steps[:1], 1, name))
    depths = [line.index("✔") for line in text.splitlines() if "✔" in line]
    assert depths == sorted(set(depths))


def test_the_answer_is_what_was_emitted(trace):
    steps = steps_of(REQUEST, read_trace(trace).steps)
    tokens = []
    for step in steps:
        tokens += [int(step.drafted.token[node]) for node in step.verified.accepted]
        tokens.append(step.verified.bonus_token)
    assert re.findall(r"\d+", answer_with_paths(steps, name).plain) == list(map(str, tokens))


def test_a_trace_is_read_from_where_it_was_even_in_the_middle_of_a_line(trace):
    whole, content = read_trace(trace).steps, trace.read_bytes()
    assert len(read_steps_after(trace, 0)) == len(whole)
    middle = content.index(b"\n", len(content) // 2) + 1
    for offset in (middle, middle - 1, middle - 9):
        after = read_steps_after(trace, offset)
        assert 0 < len(after) < len(whole)
        assert [step.decision.step for step in after] == [
            step.decision.step for step in whole[-len(after) :]
        ]
    assert len(read_steps_after(trace, middle)) == len(read_steps_after(trace, middle - 9))
    assert read_steps_after(trace, len(content)) == ()


def test_an_answer_that_was_not_traced_has_no_steps(trace, monkeypatch):
    monkeypatch.setattr("vllm_smart.demo.draw._FLUSHED_WITHIN_S", 0.6)
    assert wait_for_steps(trace, 0, "another") == []
    assert len(wait_for_steps(trace, 0, REQUEST)) > 3


def test_what_ngrams_have_guessed_is_said(tmp_path):
    config = settings("fixed_tree", ngrams=True)
    path = tmp_path / "steps"
    FakeEngine(3, config).record(path, config, num_steps=12)
    steps = steps_of(REQUEST, read_trace(path).steps)
    lines = printed(drawn_steps(steps, len(steps), name)).splitlines()
    sources = [int(s.drafted.source[node]) for s in steps for node in s.verified.verified]
    assert (
        sum(line.endswith("%  n-gram") for line in map(str.rstrip, lines)) == sources.count(NGRAM) > 0
    )
    assert sum("drafter and n-gram" in line for line in lines) == sources.count(BOTH) > 0
