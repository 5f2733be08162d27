"""Prompts are looked up in the Python that runs, to the letter; what it lacks is replaced and said."""

import json
import logging
import platform

import pytest

from vllm_smart.demo_model.references import LONG, find_pieces, refer, write_references
from vllm_smart.errors import SmartError

ONE = "def one():\n    return 1\n"
TWO = "def two():\n    return 2\n"
THREE = "def three():\n    return 3\n"
LONG_ONE = ONE * 20


@pytest.fixture
def references(tmp_path):
    """Writes references into module.py as it was; rows are (text, tokens, is a spare)."""

    def write(text, *rows):
        found = [refer("module.py", text, text.index(piece), len(piece), n) for piece, n, _ in rows]
        file = tmp_path / "prompts.jsonl"
        write_references(file, found)
        lines = file.read_text().splitlines()
        marked = [
            json.dumps({**json.loads(line), "spare": spare})
            for line, (_, _, spare) in zip(lines[1:], rows, strict=True)
        ]
        file.write_text("\n".join([lines[0], *marked]) + "\n")
        return file

    return write


@pytest.fixture
def library(tmp_path):
    """Makes a standard library of one module."""

    def make(text):
        folder = tmp_path / "library"
        folder.mkdir()
        (folder / "module.py").write_text(text, encoding="utf-8")
        return folder

    return make


def texts(found):
    return [text for _, text in found.pieces]


def test_the_texts_of_an_unchanged_library_are_found_without_a_word(references, library, caplog):
    file = references(ONE + TWO, (TWO, 70, False), (ONE, 70, False))
    found = find_pieces(file, library(ONE + TWO))
    assert texts(found) == [TWO, ONE]
    assert found.difference is None
    assert found.made_on == platform.python_version()
    assert not caplog.records


def test_a_text_is_found_where_another_release_moved_it(references, library):
    file = references(ONE + TWO, (ONE, 70, False), (TWO, 70, False))
    found = find_pieces(file, library("# A new line.\n" * 9 + TWO + "\n" + ONE))
    assert texts(found) == [ONE, TWO]
    assert found.difference is None


def test_a_text_may_end_within_a_line(references, library):
    begun = TWO[:-4]
    file = references(ONE + TWO, (begun, 70, False))
    assert texts(find_pieces(file, library("\n" + ONE + TWO))) == [begun]


def test_a_changed_text_is_replaced_by_the_next_spare_of_its_length_and_counted(
    references, library, caplog
):
    before = ONE + TWO + THREE + LONG_ONE
    file = references(
        before, (TWO, 70, False), (ONE, 70, False), (LONG_ONE, LONG, True), (THREE, 70, True)
    )
    with caplog.at_level(logging.WARNING):
        found = find_pieces(file, library(before.replace("return 2", "return 2.0")))
    assert texts(found) == [THREE, ONE]
    assert found.difference.startswith("1 of 2 prompts are replaced and 0 left out")
    assert [record.message for record in caplog.records if found.difference in record.message]
    assert len(caplog.records) == 1


def test_without_a_spare_it_is_left_out_and_counted(references, library):
    before = ONE + TWO
    file = references(before, (TWO, 70, False), (ONE, 70, False))
    found = find_pieces(file, library(ONE))
    assert texts(found) == [ONE]
    assert found.difference.startswith("0 of 2 prompts are replaced and 1 left out")


def test_a_spare_that_changed_is_passed_over(references, library):
    file = references(ONE + TWO + THREE, (ONE, 70, False), (TWO, 70, True), (THREE, 70, True))
    assert texts(find_pieces(file, library(THREE))) == [THREE]


@pytest.mark.parametrize("kept", [(), ("module.pyc",)])
def test_a_python_without_its_source_is_refused_with_the_way_out(kept, references, tmp_path):
    file = references(ONE, (ONE, 70, False))
    for name in kept:
        (tmp_path / name).write_bytes(b"\xa7\r\r\n")
    with pytest.raises(
        SmartError, match=rf"only 0 of 1 short .*\.py files in {tmp_path}.*Use a Python"
    ):
        find_pieces(file, tmp_path)


def test_topics_come_from_pydoc_data(tmp_path):
    topic = 'The "x" statement\n*****\n\nSays.\n'
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data/topics.py").write_text(f"# Made.\ntopics = {{'x': {topic!r}}}\n")
    file = tmp_path / "prose.jsonl"
    write_references(file, [refer("pydoc_data/topics.py: x", topic, 0, 8, 70)])
    assert texts(find_pieces(file, tmp_path)) == [topic[:8]]
