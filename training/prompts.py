"""Refers to the held-out prompts that tests and benchmarks use: `python -m training.prompts`.

A prompt starts and ends at a line start of a file that no model was trained on. Spares for
interpreters with other texts come from files that every installation has: tests are often left out.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice, zip_longest
from pathlib import Path

from tokenizers import Tokenizer

from training import corpus
from vllm_smart.demo_model.references import Reference, refer, write_references

NUM_SHORT, NUM_SHORT_SPARES, SHORT_TOKENS = 112, 256, (64, 160)
NUM_LONG, NUM_LONG_SPARES, LONG_TOKENS = 16, 64, (400, 1000)
MAX_PER_FILE = 6


class HeldOutFile:
    """A file's lines, of which prompts are cut."""

    def __init__(self, path: str, text: str, tokenizer: Tokenizer) -> None:
        self.lines = text.splitlines(keepends=True)
        self.path, self._text, self._tokenizer = path, text, tokenizer
        self._taken: set[int] = set()

    def cut(self, start: int, num_tokens: int, limit: int) -> tuple[Reference, range] | None:
        """Whole lines from `start` until `num_tokens` are reached, and which; None if too long."""
        text = ""
        for end, line in enumerate(self.lines[start:], start + 1):
            text += line
            size = len(self._tokenizer.encode(text).ids)
            if size >= num_tokens:
                if size > limit or not text.strip():
                    return None
                offset = sum(map(len, self.lines[:start]))
                return refer(self.path, self._text, offset, len(text), size), range(start, end)
        return None

    def take(self, lines: range) -> None:
        """Keep `spares` off these lines."""
        self._taken.update(lines)

    def spares(self, least: int, most: int, picker: random.Random) -> Iterator[Reference]:
        """One after the other, what was not taken."""
        start = 0
        while start < len(self.lines):
            found = self.cut(start, picker.randint(least, least + (most - least) * 3 // 4), most)
            if found is None or self._taken & set(found[1]):
                start += 1
            else:
                yield replace(found[0], spare=True)
                start = found[1].stop


def held_out_prompts(tokenizer: Tokenizer, seed: int = 0) -> list[Reference]:
    """Returns the long prompts, then the short ones, spread over the held-out files; then spares."""
    picker = random.Random(seed)
    files = [
        HeldOutFile(path, text, tokenizer)
        for path, text in corpus.stdlib_files()
        if corpus.is_held_out(path)
    ]
    prompts: list[Reference] = []
    for total, (least, most) in ((NUM_LONG, LONG_TOKENS), (NUM_SHORT, SHORT_TOKENS)):
        chosen: list[Reference] = []
        for _ in range(MAX_PER_FILE):
            for file in files:
                start = picker.randrange(len(file.lines)) if file.lines else 0
                size = picker.randint(least, least + (most - least) * 3 // 4)
                found = file.cut(start, size, most)
                if found and len(chosen) < total:
                    chosen.append(found[0])
                    file.take(found[1])
        prompts += chosen
    library = [file for file in files if not corpus.is_test(file.path)]
    for total, (least, most) in ((NUM_LONG_SPARES, LONG_TOKENS), (NUM_SHORT_SPARES, SHORT_TOKENS)):
        in_turn = chain.from_iterable(zip_longest(*(f.spares(least, most, picker) for f in library)))
        prompts += islice((spare for spare in in_turn if spare is not None), total)
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    prompts = held_out_prompts(Tokenizer.from_file(str(arguments.tokenizer)))
    write_references(arguments.out, prompts)
    print(f"{len(prompts)} references, {sum(prompt.spare for prompt in prompts)} of them spares")


if __name__ == "__main__":
    main()
