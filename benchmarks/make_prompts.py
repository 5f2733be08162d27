"""Refers to the prompts of `vllm-smart bench` beyond code: `python -m benchmarks.make_prompts`.

Nothing in them was trained on: documentation is the language reference's text that CPython ships in
`pydoc_data`, a folder left out of training; chats and edits come from whole held-out files.
"""

import argparse
import ast
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from training import corpus
from vllm_smart.bench import texts
from vllm_smart.demo_model import demo_model_paths
from vllm_smart.demo_model.references import (
    TOPICS,
    Reference,
    refer,
    standard_library,
    topics,
    write_references,
)

NUM_SHORT, NUM_LONG = 96, 16
NUM_SHORT_SPARES, NUM_LONG_SPARES = 96, 32
SHORT_TOKENS, LONG_TOKENS = (64, 200), (400, 900)
# A topic's text from here on is in no prompt but spares.
FIRST_SPARE_PROSE = 4500  # characters
_NAME = re.compile(r"\b[a-z_][a-z0-9_]{3,}\b")


@dataclass(frozen=True)
class Piece:
    """Whole lines, but the end of the last, and the prompt that is made of them."""

    prompt: str
    source: str
    text: str  # all of the source
    start: int  # in `text`, as is `stop`
    stop: int
    name: str | None = None  # what an edit replaces
    is_spare: bool = False

    def reference(self, tokens: int) -> Reference:
        found = refer(self.source, self.text, self.start, self.stop - self.start, tokens)
        return replace(found, name=self.name, spare=self.is_spare)


def held_out_files() -> list[tuple[str, str]]:
    """(path, text) of the files that no model was trained on."""
    return [(path, text) for path, text in corpus.stdlib_files() if corpus.is_held_out(path)]


def prose() -> Iterator[Piece]:
    """The language reference, each topic from its beginning."""
    for name, text in topics(standard_library()).items():
        yield Piece(text, f"{TOPICS}: {name}", text, 0, len(text))


def later_prose() -> Iterator[Piece]:
    """Paragraphs further down in long topics."""
    for whole in prose():
        for found in re.finditer(r"\n\n(?=\S)", whole.text):
            if found.end() >= FIRST_SPARE_PROSE:
                yield replace(whole, prompt=whole.text[found.end() :], start=found.end())


def chats() -> Iterator[Piece]:
    """A docstring asks, as in training, up to where the answer begins."""
    for path, text in held_out_files():
        for node, question, _ in corpus.documented(text):
            start, stop = lines_of(node.body[0], text)
            yield Piece(f"{corpus.USER}{question}{corpus.ASSISTANT}", path, text, start, stop)


def edits() -> Iterator[Piece]:
    """A function, and the beginning of the same one with a name replaced."""
    for path, text in held_out_files():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            start, stop = lines_of(node, text)
            names = [arg.arg for arg in node.args.args if arg.arg not in ("self", "cls")]
            names += _NAME.findall(node.name)
            if text.count("\n", start, stop) >= 3 and names:
                yield Piece(texts.edit(text[start:stop], names[0]), path, text, start, stop, names[0])


def lines_of(node: ast.stmt, text: str) -> tuple[int, int]:
    """Where a statement's first line begins and where it ends, in characters."""
    lines = text.split("\n")
    end = len(lines[node.end_lineno - 1].encode()[: node.end_col_offset].decode())
    return (
        sum(len(line) + 1 for line in lines[: node.lineno - 1]),
        sum(len(line) + 1 for line in lines[: node.end_lineno - 1]) + end,
    )


def cut(piece: Piece, most: int, tokenizer: Tokenizer) -> Piece:
    """The first `most` tokens, or all of it."""
    encoding = tokenizer.encode(piece.prompt)
    if len(encoding.ids) <= most:
        return piece
    length = encoding.offsets[most - 1][1]
    return replace(piece, prompt=piece.prompt[:length], stop=piece.start + length)


def chosen(
    found: list[Piece],
    numbers: tuple[int, int],
    may_cut: bool,
    tokenizer: Tokenizer,
    picker: random.Random,
) -> list[Piece]:
    """The long prompts, then the short ones, of as many sources as there are."""
    picker.shuffle(found)
    pieces: list[Piece] = []
    for number, (least, most) in zip(numbers, (LONG_TOKENS, SHORT_TOKENS), strict=True):
        used = {piece.prompt for piece in pieces}
        for piece in found:
            if may_cut:
                piece = cut(piece, picker.randint(least, most), tokenizer)
            size = len(tokenizer.encode(piece.prompt).ids)
            if (
                piece.prompt not in used
                and size <= most
                and (size >= least or (not may_cut and most < 400))
            ):
                used.add(piece.prompt)
                pieces.append(piece)
                number -= 1
            if not number:
                break
    return pieces


def with_spares(
    name: str,
    found: Callable[[], Iterator[Piece]],
    later: Callable[[], Iterator[Piece]] | None,
    tokenizer: Tokenizer,
) -> list[Reference]:
    """The prompts of one kind; spares are of files that every installation has, so not of tests."""
    pieces = chosen(list(found()), (NUM_LONG, NUM_SHORT), bool(later), tokenizer, random.Random(name))
    prompts = {piece.prompt for piece in pieces}
    others = [
        replace(piece, is_spare=True)
        for piece in (later or found)()
        if piece.prompt not in prompts and not corpus.is_test(piece.source)
    ]
    numbers = NUM_LONG_SPARES, NUM_SHORT_SPARES
    pieces += chosen(others, numbers, bool(later), tokenizer, random.Random(f"{name} spares"))
    return [piece.reference(len(tokenizer.encode(piece.prompt).ids)) for piece in pieces]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("vllm_smart/bench/prompts"))
    out: Path = parser.parse_args().out
    tokenizer = Tokenizer.from_file(str(demo_model_paths()["target"] / "tokenizer.json"))
    for name, found, later in (
        ("prose", prose, later_prose),
        ("chat", chats, None),
        ("edit", edits, None),
    ):
        references = with_spares(name, found, later, tokenizer)
        write_references(out / f"{name}.jsonl", references)
        print(
            f"{name}: {len(references)} references, {sum(r.spare for r in references)} of them spares"
        )


if __name__ == "__main__":
    main()
