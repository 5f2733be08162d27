"""Datastores: what is built of texts is found again, and what cannot be used is refused."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vllm_smart.cli import app
from vllm_smart.errors import DatastoreError
from vllm_smart.kernels.ngram.reference import Occurrence, same_backwards
from vllm_smart.proposer.datastore import Datastore
from vllm_smart.proposer.datastore_build import build_datastore
from vllm_smart.proposer.ngram import (
    DATASTORE,
    OWN,
    Contexts,
    NgramIndex,
    NgramLimits,
    continuations,
    occurrences,
)
from vllm_smart.proposer.token_file import vocabulary_hash

LIMITS = NgramLimits(max_match=8, max_depth=4)
END = 0
VOCABULARY = {"<end>": END} | {f"w{number}": number for number in range(1, 50_000)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    """Of words `w1` to `w49999`, each a token of its number."""
    return saved_tokenizer(tmp_path_factory.mktemp("tokenizer"), VOCABULARY)


def saved_tokenizer(folder: Path, vocabulary: dict[str, int]) -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel(vocabulary, unk_token="<end>"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    return str(folder)


def words(tokens) -> str:
    return " ".join(f"w{token}" for token in tokens)


def quietly(*_) -> None:
    """Tells nobody how far the build is."""


def opened(path: Path, vocabulary=VOCABULARY) -> Datastore:
    return Datastore.open(path, vocabulary_hash(vocabulary), len(vocabulary))


def found_in(store: Datastore, context: list[int]) -> list[Occurrence]:
    contexts = Contexts.of([0], np.array([context], np.int32), [len(context)])
    match, bits, num_ahead, ahead, num = occurrences([store], contexts, LIMITS)
    return [
        Occurrence(int(match[0, k]), int(bits[0, k]), tuple(ahead[0, k, : num_ahead[0, k]].tolist()))
        for k in range(num[0])
    ]


def check_finds(store: Datastore, texts: list[list[int]], contexts: list[list[int]]) -> None:
    """The longest matches that a search of every place finds, where they are."""
    for context in contexts:
        there = [
            Occurrence(same, DATASTORE, tuple(text[at + 1 : at + 1 + LIMITS.max_depth]))
            for text in texts
            for at in range(len(text) - 1)
            if (same := same_backwards(text, at, context, LIMITS.max_match))
        ]
        found = found_in(store, context)
        longest = sorted((each.match for each in there), reverse=True)[: store.most_found]
        assert [each.match for each in found] == longest
        assert not Counter(found) - Counter(there)


def random_texts(rng: np.random.Generator, first: int) -> list[list[int]]:
    return [rng.integers(first, first + 4, rng.integers(20, 200)).tolist() for _ in range(4)]


@pytest.mark.parametrize("segment_tokens", [1 << 25, 50])
def test_all_kinds_of_text_are_found_again(tokenizer, tmp_path, segment_tokens):
    rng = np.random.default_rng(0)
    prose, first, second, ready = random_texts(rng, 40_000)  # tokens that int16 has no room for
    (tmp_path / "a.txt").write_text(words(prose))
    lines = [json.dumps({"text": words(first)}), "", json.dumps(words(second))]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    np.save(tmp_path / "c.npy", np.array(ready))
    files = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.npy")]
    built = build_datastore(files, tokenizer, tmp_path / "out", False, quietly, segment_tokens)
    text = [token for each in (prose, first, second, ready) for token in [*each, END]]
    assert built.num_documents == 4
    assert built.num_tokens == len(text)
    store = opened(tmp_path / "out")
    assert store.text.tolist() == text
    segments = [text[at : at + segment_tokens] for at in range(0, len(text), segment_tokens)]
    contexts = [rng.integers(40_000, 40_004, rng.integers(1, 12)).tolist() for _ in range(50)]
    check_finds(store, segments, contexts)
    signed = Datastore(store.text.view(np.int16), store.places, store.segment_start, store.barriers)
    with pytest.raises(AssertionError):
        check_finds(signed, segments, contexts)


def test_own_text_and_datastore_share_one_tree(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(words([1, 2, 3, 4]))
    build_datastore([tmp_path / "a.txt"], tokenizer, tmp_path / "out", False, quietly)
    index, history = NgramIndex(1, 8), np.array([[2, 3, 9, 1, 2]], np.int32)
    index.extend([0], history, [5])
    stores = [index, opened(tmp_path / "out")]
    trees = continuations(stores, Contexts.of([0], history, [5]), LIMITS, index.barriers)
    assert trees.token[0, :2].tolist() == [3, 9]  # the request's own text comes first
    stores = dict(zip(trees.token[0].tolist(), trees.stores[0].tolist(), strict=True))
    assert (stores[3], stores[4], stores[9]) == (OWN | DATASTORE, DATASTORE, OWN)
    assert trees.match_len[0, 0] == 2
    assert trees.count[0, 0] == 2


def test_a_token_takes_6_bytes_and_8_where_the_vocabulary_is_large(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(1, 60_001))
    for size, num_bytes in ((1 << 16, 6), ((1 << 16) + 1, 8)):
        vocabulary = {"<end>": END} | {f"w{number}": number for number in range(1, size)}
        folder = tmp_path / str(size)
        build_datastore(
            [tmp_path / "a.npy"], saved_tokenizer(folder, vocabulary), tmp_path / "out", False, quietly
        )
        per_token = (tmp_path / "out").stat().st_size / 60_001
        assert num_bytes <= per_token <= num_bytes + 0.1
        assert [each.ahead[0] for each in found_in(opened(tmp_path / "out", vocabulary), [59_998])] == [
            59_999
        ]


def test_dedupe_leaves_out_what_stood_before(tokenizer, tmp_path):
    rng = np.random.default_rng(1)
    one, two, three = (words(rng.integers(1, 100, 30)) for _ in range(3))
    (tmp_path / "a.txt").write_text(f"{one}\n\n{two}\n\n{one}\n")
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps({"text": each}) for each in (three, two, three))
    )
    files = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    assert build_datastore(files, tokenizer, tmp_path / "out", False, quietly).num_tokens == 6 * 30 + 4
    built = build_datastore(files, tokenizer, tmp_path / "out", True, quietly)
    assert built.num_tokens == 3 * 30 + 2


def test_a_text_that_is_read_in_pieces_is_whole(tokenizer, tmp_path, monkeypatch):
    from vllm_smart.proposer import datastore_build, datastore_texts

    monkeypatch.setattr(datastore_texts, "_PIECE_CHARS", 50)
    monkeypatch.setattr(datastore_texts, "_PIECE_TOKENS", 7)
    monkeypatch.setattr(datastore_build, "_BATCH_CHARS", 100)
    tokens = np.random.default_rng(2).integers(1, 100, 300).tolist()
    (tmp_path / "a.txt").write_text("\n".join(f"w{token}" for token in tokens))
    np.save(tmp_path / "b.npy", np.array(tokens))
    files, told = [tmp_path / "a.txt", tmp_path / "b.npy"], []
    build_datastore(files, tokenizer, tmp_path / "out", False, lambda *progress: told.append(progress))
    assert opened(tmp_path / "out").text.tolist() == 2 * [*tokens, END]
    reading = [done for label, done, _ in told if label == "reading"]
    assert reading == sorted(reading)
    assert 0.9 < reading[-1] / sum(path.stat().st_size for path in files) <= 1.0
    assert told[-1] == ("sorting", 602, 602)


WRONG_TEXTS = {
    "no file": ("missing.txt", None, "is no file"),
    "another kind": ("a.pdf", b"w1 w2", r"a .pdf file is not known"),
    "nothing": ("a.txt", b"", "is empty. Leave it out"),
    "no tokens": ("a.txt", b"\n \n", "have no tokens at all"),
    "zero bytes": ("a.txt", b"w1\0w2", "is binary. Convert it"),
    "not UTF-8": ("a.txt", b"\xff\xfe\x00\x01", "is binary or not in UTF-8"),
    "a line that is not JSON": ("a.jsonl", b'{"text": "w1"}\n{"text"', "line 2 is not JSON"),
    "a line without text": (
        "a.jsonl",
        b'{"content": "w1"}',
        "line 1 is neither a string nor an object",
    ),
    "no array": ("a.npy", b"w1 w2", "is no array of numpy"),
    "fractions": ("a.npy", np.ones(3), "Tokens are integers"),
    "a cube": ("a.npy", np.ones((2, 2, 2), int), "Tokens are integers"),
    "a token too many": (
        "a.npy",
        np.array([1, 50_000]),
        "has token 50000 and the tokenizer knows 50000",
    ),
    "a negative token": ("a.npy", np.array([1, -1]), "has token -1"),
}


@pytest.mark.parametrize("what", WRONG_TEXTS)
def test_a_text_that_is_none_is_refused_and_the_old_datastore_stays(what, tokenizer, tmp_path):
    name, content, message = WRONG_TEXTS[what]
    path, out = tmp_path / name, tmp_path / "out"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    out.write_text("old")
    with pytest.raises(DatastoreError, match=message):
        build_datastore([path], tokenizer, out, False, quietly)
    assert out.read_text() == "old"
    assert {each.name for each in tmp_path.iterdir()} <= {name, "out"}


def test_what_building_needs_is_named(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("w1 w2")
    missing = str(tmp_path / "missing")
    with pytest.raises(DatastoreError, match="missing' cannot be loaded"):
        build_datastore([tmp_path / "a.txt"], missing, tmp_path / "out", False, quietly)
    with pytest.raises(DatastoreError, match="cannot be written: No such file or directory"):
        build_datastore([tmp_path / "a.txt"], tokenizer, tmp_path / "no" / "out", False, quietly)
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    with pytest.raises(DatastoreError, match=r"pip install 'vllm-smart\[datastore\]'"):
        build_datastore([tmp_path / "a.txt"], tokenizer, tmp_path / "out", False, quietly)


def test_a_file_that_cannot_be_used_is_refused_with_the_way_out(tokenizer, tmp_path):
    way_out = "Build it with `vllm-smart datastore build`"
    path = tmp_path / "out"
    with pytest.raises(DatastoreError, match=f"cannot be read: No such file or directory. {way_out}"):
        opened(path)
    (tmp_path / "a.txt").write_text(words(range(1, 40)))
    build_datastore([tmp_path / "a.txt"], tokenizer, path, False, quietly)
    whole = path.read_bytes()
    with pytest.raises(DatastoreError, match="built with another tokenizer"):
        opened(path, VOCABULARY | {"w50000": 50_000})
    with pytest.raises(DatastoreError, match="has token 39 and the target knows 39 tokens"):
        Datastore.open(path, vocabulary_hash(VOCABULARY), 39)
    path.write_bytes(whole[:-1])
    with pytest.raises(DatastoreError, match=f"bytes after its header instead of .*{way_out}"):
        opened(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DatastoreError, match=f"checksum is wrong. {way_out}"):
        opened(path)
    path.write_bytes(whole.replace(b'"version": 1', b'"version": 9'))
    with pytest.raises(DatastoreError, match=f"has version 9 and this vllm_smart reads 1. {way_out}"):
        opened(path)
    path.write_bytes(whole[:40])
    with pytest.raises(DatastoreError, match=f"header of .* is damaged. {way_out}"):
        opened(path)
    path.write_bytes(b"PK\x03\x04" + whole[4:])
    with pytest.raises(DatastoreError, match=f"is no datastore of vllm_smart. {way_out}"):
        opened(path)


def test_the_command_builds_and_says_what_is_wrong(tokenizer, tmp_path):
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_text("w1 w2 w3")
    arguments = ["datastore", "build", str(text), "--tokenizer", tokenizer, "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "4 tokens, 1 documents" in result.stdout
    assert opened(out).text.tolist() == [1, 2, 3, END]
    text.write_text("")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: TEXT ")
