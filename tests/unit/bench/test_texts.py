"""What the package ships about prompts: references alone, to text that nobody trained on."""

import hashlib
import json
from dataclasses import fields

import pytest

from tests.unit.bench.synthetic import suite
from training.corpus import is_held_out
from vllm_smart.bench import texts
from vllm_smart.bench.report import write_report
from vllm_smart.bench.runner import Runner
from vllm_smart.bench.texts import KINDS, chat, differences, edit
from vllm_smart.demo_model.references import LONG, TOPICS, Found, Reference, find_pieces

# All prompts of a kind as they were before only references were kept.
DIGESTS = {
    "code": "3d60d0c404693913",
    "prose": "ee075eee35f6b878",
    "chat": "f2792f649f1064e1",
    "edit": "aae353ac65a611f1",
}


def rows(kind):
    _, *references = texts.file_of(kind).read_text().splitlines()
    return [json.loads(line) for line in references]


@pytest.mark.parametrize("kind", KINDS)
def test_references_hold_no_text(kind):
    for row in rows(kind):
        assert set(row) <= {field.name for field in fields(Reference)}
        assert len(row["sha256"]) == 16
        assert max(len(str(value)) for value in row.values()) < 60
        assert row["source"].endswith(".py") or row["source"].startswith(f"{TOPICS}: ")


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_spares_come_from_what_was_held_out(kind):
    for row in rows(kind):
        if kind == "prose":
            assert row["source"].startswith(f"{TOPICS}: ")
        else:
            assert is_held_out(row["source"])


@pytest.mark.parametrize("kind", KINDS)
def test_no_spare_is_a_prompt_already(kind):
    hashes = [(row["source"], row["line"], row["chars"], row.get("name")) for row in rows(kind)]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_python_of_the_version_referred_to_gives_the_prompts_that_were_stored(kind):
    found = find_pieces(texts.file_of(kind))
    if found.difference:
        pytest.skip(found.difference)
    digest = hashlib.sha256(json.dumps(texts.texts(kind)).encode()).hexdigest()
    assert digest[:16] == DIGESTS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_have_as_many_tokens_as_their_references_say(kind):
    tokenizers = pytest.importorskip("tokenizers")
    path = texts.file_of("code").parent / "target/tokenizer.json"
    encodings = tokenizers.Tokenizer.from_file(str(path)).encode_batch(texts.texts(kind))
    references = [reference for reference, _ in find_pieces(texts.file_of(kind)).pieces]
    assert [len(e.ids) for e in encodings] == [reference.tokens for reference in references]
    is_long = [reference.tokens >= LONG for reference in references]
    assert is_long == sorted(is_long, reverse=True)


def test_a_docstring_asks_its_first_paragraph():
    docstring = '    """Return one\n    or more.\n\n    Slowly.\n    """\n'
    assert chat(docstring) == "<|user|>Return one or more.<|assistant|>"


def test_an_edit_shows_a_function_and_begins_it_with_the_new_name():
    function = "    def f(a, ab):\n        b = a\n        return b"
    assert edit(function, "a") == (
        "def f(a, ab):\n    b = a\n    return b\n"
        "# The same with a renamed to new_a:\ndef f(new_a, ab):\n    b = new_a\n"
    )


@pytest.fixture
def other_chats(monkeypatch):
    found = {"chat.jsonl": Found("3.11.7", [], 0, 2)}
    monkeypatch.setattr(
        texts, "find_pieces", lambda file: found.get(file.name, Found("3.11.7", [], 0, 0))
    )


def test_only_the_kinds_that_a_suite_uses_are_said_to_be_others(other_chats):
    assert differences(["code", "code"]) == "as on Python 3.11.7"
    assert differences(["code", "chat"]).startswith("chat: 0 of 2 prompts are replaced and 2 left out")


def test_results_and_their_report_say_that_prompts_are_others(monkeypatch, tmp_path):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(Found, "difference", "3 of 128 prompts are replaced")
    found = Runner(suite(), tmp_path, 1, "vllm-smart bench").results
    assert found.environment["prompts"] == "code: 3 of 128 prompts are replaced"
    write_report(found, tmp_path)
    assert "code: 3 of 128 prompts are replaced" in (tmp_path / "report.md").read_text()
