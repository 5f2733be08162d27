"""Writes the held-out prompts that tests and benchmarks use: `python -m training.prompts`.

A prompt starts and ends at a line start of a file that no model was trained on.
"""

import argparse
import json
import random
from pathlib import Path

from tokenizers import Tokenizer

from training import corpus

NUM_SHORT, SHORT_TOKENS = 112, (64, 160)
NUM_LONG, LONG_TOKENS = 16, (400, 1000)
MAX_PER_FILE = 6


def cut(lines: list[str], start: int, num_tokens: int, limit: int, tokenizer: Tokenizer) -> str | None:
    """Takes whole lines from `start` until `num_tokens` are reached; None if it does not fit."""
    text = ""
    for line in lines[start:]:
        text += line
        size = len(tokenizer.encode(text).ids)
        if size >= num_tokens:
            return text if size <= limit else None
    return None


def held_out_prompts(tokenizer: Tokenizer, seed: int = 0) -> list[dict[str, str]]:
    """Returns the long prompts, then the short ones, spread over the held-out files."""
    picker = random.Random(seed)
    files = {path: text for path, text in corpus.stdlib_files() if corpus.is_held_out(path)}
    prompts: list[dict[str, str]] = []
    for total, (least, most) in ((NUM_LONG, LONG_TOKENS), (NUM_SHORT, SHORT_TOKENS)):
        chosen: list[dict[str, str]] = []
        for _ in range(MAX_PER_FILE):
            for path, text in files.items():
                lines = text.splitlines(keepends=True)
                start = picker.randrange(len(lines)) if lines else 0
                size = picker.randint(least, least + (most - least) * 3 // 4)
                prompt = cut(lines, start, size, most, tokenizer)
                if prompt and prompt.strip() and len(chosen) < total:
                    chosen.append({"prompt": prompt, "source": path})
        prompts += chosen
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    prompts = held_out_prompts(Tokenizer.from_file(str(arguments.tokenizer)))
    arguments.out.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))


if __name__ == "__main__":
    main()
