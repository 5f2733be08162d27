"""The reason of a failed start goes from the process that fails to the one that a person watches."""

import logging

import pytest

from vllm_smart.entry import last_words
from vllm_smart.errors import ConfigError

pytestmark = pytest.mark.vllm


@pytest.fixture
def file(tmp_path, monkeypatch):
    """An empty file of last words, written by what the logger "vllm" is told."""
    path = tmp_path / "why"
    path.touch()
    monkeypatch.setenv("SMART_LAST_WORDS", str(path))
    logger = logging.getLogger("vllm")
    # Another test's front end may have left one.
    before = [each for each in logger.handlers if not isinstance(each, last_words._LastWords)]
    logger.handlers[:] = before
    last_words.leave_last_words()
    last_words.leave_last_words()
    assert len(logger.handlers) == len(before) + 1
    yield path
    logger.handlers[:] = before


def log(message: str, error: Exception) -> None:
    try:
        raise error
    except type(error):
        logging.getLogger("vllm.v1.engine.core").exception(message)


def test_the_first_reason_is_the_root_cause(file):
    log("WorkerProc failed to start.", ValueError("no memory"))
    log("EngineCore failed to start.", RuntimeError("a worker failed"))
    assert last_words.last_words(RuntimeError("see above")) == "ValueError: no memory"


def test_our_own_errors_are_told_without_their_class(file):
    log("EngineCore failed to start.", ConfigError("cost_table.path='x': there is none."))
    assert last_words.last_words(RuntimeError()) == "cost_table.path='x': there is none."


def test_errors_that_do_not_end_the_start_are_no_reason(file):
    log("A request failed.", ValueError("of one request"))
    assert last_words.last_words(RuntimeError("something else")) is None


def test_nothing_is_added_to_a_logger_where_nobody_listens(monkeypatch):
    monkeypatch.delenv("SMART_LAST_WORDS", raising=False)
    before = list(logging.getLogger("vllm").handlers)
    last_words.leave_last_words()
    assert logging.getLogger("vllm").handlers == before
