"""A worker's own grammars: compiled elsewhere, brought up to what was emitted, followed along paths."""

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.adapter.test_grammar_trees import SCHEMA, Reasoner, bits, make  # noqa: F401
from vllm_smart.reports.stats import StepStats

pytestmark = pytest.mark.vllm
PROMPT = [1, 2, 3]
END_OF_REASONING = 7


class Manager:
    """vLLM's, whose compiler waits for a nod, and may break."""

    def __init__(self, manager, error: Exception | None = None) -> None:
        self._manager, self._error = manager, error
        self.may_compile = threading.Event()
        self.may_compile.set()

    def grammar_init(self, request) -> None:
        self.may_compile.wait(10)
        if self._error is not None:
            raise self._error
        structured = request.structured_output_request
        structured.grammar = self._manager.backend.compile_grammar(*structured.structured_output_key)

    def __getattr__(self, name):
        return getattr(self._manager, name)


def request_data(tokens=PROMPT, **params):
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    structured = StructuredOutputsParams(json=json.dumps(SCHEMA))
    params = SamplingParams(**{"structured_outputs": structured, **params})
    return SimpleNamespace(
        req_id="r", sampling_params=params, prompt_len=len(PROMPT), prefill_token_ids=list(tokens)
    )


@pytest.fixture
def grammars(make):  # noqa: F811
    """Function from a reasoner and an error to grammars, their history, counters and manager."""
    from vllm_smart.adapter.grammars import RequestGrammars

    def of(reasoner=None, error=None, group=None):
        manager = Manager(make(reasoner)[0], error)
        history, stats = np.zeros((2, 64), np.int32), StepStats.of_process()
        vocab = len(make.tokenizer)
        return RequestGrammars(lambda: manager, history, vocab, stats, group), history, stats, manager

    of.encode = lambda text: make.tokenizer.encode(text, add_special_tokens=False)
    of.vocab = len(make.tokenizer)
    return of


def first(grammars, end: int):
    """The grammar of slot 1, whose root is at `end`; None where it is not known."""
    emits = np.array([False, True])
    return grammars.of_step(np.array([0, 1]), np.array([9, end]), emits).get(1)


def ready(grammars, history, end: int):
    for _ in range(500):
        if (path := first(grammars, end)) is not None:
            return path
        time.sleep(0.01)
    raise AssertionError("it is never ready")


def allowed(path, num_words: int, vocab: int) -> set[int] | None:
    mask = np.zeros(num_words, np.int32)
    return set(np.flatnonzero(bits(mask, vocab))) if path.allowed(mask) else None


def write(history, tokens) -> int:
    """Put tokens after the prompt in slot 1; the position of the last."""
    history[1, : len(PROMPT) + len(tokens)] = [*PROMPT, *tokens]
    return len(PROMPT) + len(tokens) - 1


def test_a_grammar_follows_what_its_request_emits(grammars):
    of, history, stats, _ = grammars()
    assert of.add_request(1, request_data())
    assert of.are_bound(np.array([0, 1])).tolist() == [False, True]
    text = grammars.encode('{"name": "self"')
    for count in (1, 2, 5, len(text)):  # as steps do, a few tokens at a time
        path = ready(of, history, write(history, text[:count]))
        tokens = allowed(path, of.num_words, grammars.vocab)
        assert tokens
        if count < len(text):
            assert text[count] in tokens
            assert path.advance(text[count])
            path.back(1)
    assert stats.counters()["trees_without_grammar_by_reason"]["failed"] == 0


def test_what_may_come_next_does_not_depend_on_whether_it_was_asked(grammars):
    of, history, *_ = grammars()
    of.add_request(1, request_data())
    text = grammars.encode('{"name": "self"')
    path = ready(of, history, write(history, text[:1]))
    for token in text[1:]:
        taken = [_takes(path, other) for other in range(grammars.vocab)]
        assert set(np.flatnonzero(taken)) == allowed(path, of.num_words, grammars.vocab)
        assert [_takes(path, other) for other in range(grammars.vocab)] == taken
        assert not path.advance(32 * of.num_words)
        assert path.advance(token)


def _takes(path, token: int) -> bool:
    takes = path.advance(token)
    path.back(int(takes))
    return takes


def test_a_resumed_request_goes_on_where_it_was(grammars):
    of, history, *_ = grammars()
    text = grammars.encode('{"name": "self"')
    end = write(history, text)
    of.add_request(1, request_data(history[1, : end + 1].tolist()))
    resumed = allowed(ready(of, history, end), of.num_words, grammars.vocab)
    assert grammars.encode(",")[0] in resumed
    assert grammars.encode("{")[0] not in resumed


def test_nothing_is_masked_before_reasoning_has_ended(grammars):
    of, history, *_ = grammars(Reasoner())
    of.add_request(1, request_data())
    path = ready(of, history, write(history, [9, 9]))
    assert allowed(path, of.num_words, grammars.vocab) is None
    assert path.advance(5)
    assert allowed(path, of.num_words, grammars.vocab) is None
    # On a path it may end: there the grammar begins.
    assert path.advance(END_OF_REASONING)
    begins = allowed(path, of.num_words, grammars.vocab)
    assert grammars.encode("{")[0] in begins
    path.back(2)
    path = first(of, write(history, [9, 9, END_OF_REASONING]))
    assert allowed(path, of.num_words, grammars.vocab) == begins


def test_reasoning_that_has_ended_with_the_prompt_masks_from_the_start(grammars):
    from vllm_smart.growth.request_terms import REASONING_KEY

    of, history, *_ = grammars(Reasoner())
    of.add_request(1, request_data(extra_args={REASONING_KEY: (True, None)}))
    opens = grammars.encode("{")
    path = ready(of, history, write(history, opens[:1]))
    assert allowed(path, of.num_words, grammars.vocab) is not None


def test_until_it_is_compiled_a_request_is_drafted_for_as_if_it_had_none(grammars):
    of, history, stats, manager = grammars()
    manager.may_compile.clear()
    of.add_request(1, request_data())
    end = write(history, grammars.encode("{")[:1])
    assert first(of, end) is None
    assert first(of, end) is None
    assert stats.counters()["trees_without_grammar_by_reason"] == {"compiling": 2, "failed": 0}
    manager.may_compile.set()
    assert ready(of, history, end) is not None


def test_one_that_does_not_compile_is_given_up(grammars, caplog):
    of, history, stats, _ = grammars(error=ValueError("no such schema"))
    of.add_request(1, request_data())
    for _ in range(50):
        assert first(of, write(history, [5])) is None
    counted = stats.counters()["trees_without_grammar_by_reason"]
    assert counted["failed"] > 0


def test_one_that_refuses_what_was_emitted_is_given_up(grammars):
    of, history, stats, _ = grammars()
    of.add_request(1, request_data())
    end = write(history, grammars.encode("]")[:1])
    for _ in range(50):
        assert first(of, end) is None
    assert stats.counters()["trees_without_grammar_by_reason"]["failed"] > 0


def test_a_slot_has_the_grammar_of_its_latest_request(grammars):
    of, *_ = grammars()
    assert of.add_request(1, request_data())
    assert not of.add_request(1, request_data(structured_outputs=None))
    assert not of.are_bound(np.array([1])).any()
    assert of.add_request(1, request_data())
    of.ended(1)
    assert not of.are_bound(np.array([1])).any()


def test_thinking_budgets_are_left_to_vllm(grammars):
    of, *_ = grammars()
    data = request_data()
    data.sampling_params.thinking_token_budget = 8
    assert not of.add_request(1, data)


def test_ranks_begin_in_the_same_step(grammars, monkeypatch):
    """Another rank is not ready yet, or has failed."""
    import torch

    theirs = []
    monkeypatch.setattr(
        torch.distributed,
        "all_reduce",
        lambda mine, op, group: mine.clamp_(max=theirs.pop(0) if theirs else 1),
    )
    of, history, stats, _ = grammars(group="all")
    of.add_request(1, request_data())
    end = write(history, grammars.encode("{")[:1])
    theirs += [0] * 5
    for _ in range(5):
        assert first(of, end) is None
    assert ready(of, history, end) is not None
    of.add_request(1, request_data())
    theirs.append(-1)
    for _ in range(5):
        assert first(of, end) is None
    assert stats.counters()["trees_without_grammar_by_reason"]["failed"] == 5
