"""Writes the prompts of `vllm-smart bench` beyond code: `python -m benchmarks.make_prompts`.

Nothing in them was trained on: documentation is the language reference's text that CPython ships in
`pydoc_data`, a folder left out of training; chats and edits come from whole held-out files. All of it
is under the PSF licence.
"""

import argparse
import ast
import json
import random
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from training import corpus
from vllm_smart.demo_model import demo_model_paths

NUM_SHORT, NUM_LONG = 96, 16
SHORT_TOKENS, LONG_TOKENS = (64, 200), (400, 900)
_NAME = re.compile(r"\b[a-z_][a-z0-9_]{3,}\b")


def held_out_files() -> list[tuple[str, str]]:
    """(path, text) of the files that no model was trained on."""
    return [(path, text) for path, text in corpus.stdlib_files() if corpus.is_held_out(path)]


def prose() -> Iterator[tuple[str, str]]:
    """(text, source): paragraphs of the language reference, from each topic's beginning."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    topics = ast.literal_eval(path.read_text(encoding="utf-8").split("topics = ", 1)[1])
    for name, text in topics.items():
        yield text, f"pydoc_data/topics.py: {name}"


def chats() -> Iterator[tuple[str, str]]:
    """(text, source): a docstring asks, as in training, up to where the answer begins."""
    for path, text in held_out_files():
        for chat in corpus.chat_documents(text):
            yield chat[: chat.index(corpus.ASSISTANT) + len(corpus.ASSISTANT)], path


def edits() -> Iterator[tuple[str, str]]:
    """(text, source): a function, and the beginning of the same one with a name replaced."""
    for path, text in held_out_files():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            code = textwrap.dedent(ast.get_source_segment(text, node, padded=True) or "")
            names = [arg.arg for arg in node.args.args if arg.arg not in ("self", "cls")]
            names += _NAME.findall(node.name)
            lines = code.splitlines(keepends=True)
            if len(lines) < 4 or not names:
                continue
            renamed = re.sub(rf"\b{names[0]}\b", f"new_{names[0]}", code)
            begun = "".join(renamed.splitlines(keepends=True)[:2])
            yield f"{code}\n# The same with {names[0]} renamed to new_{names[0]}:\n{begun}", path


def cut(text: str, most: int, tokenizer: Tokenizer) -> str:
    """The first `most` tokens, or all of it."""
    encoding = tokenizer.encode(text)
    return text if len(encoding.ids) <= most else text[: encoding.offsets[most - 1][1]]


def chosen(
    found: list[tuple[str, str]], may_cut: bool, tokenizer: Tokenizer, picker: random.Random
) -> list[dict[str, str]]:
    """The long prompts, then the short ones, of as many sources as there are."""
    picker.shuffle(found)
    prompts: list[dict[str, str]] = []
    for number, (least, most) in ((NUM_LONG, LONG_TOKENS), (NUM_SHORT, SHORT_TOKENS)):
        used: set[str] = {prompt["prompt"] for prompt in prompts}
        for text, source in found:
            if may_cut:
                text = cut(text, picker.randint(least, most), tokenizer)
            size = len(tokenizer.encode(text).ids)
            if text not in used and size <= most and (size >= least or (not may_cut and most < 400)):
                used.add(text)
                prompts.append({"prompt": text, "source": source})
                number -= 1
            if not number:
                break
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("vllm_smart/bench/prompts"))
    out: Path = parser.parse_args().out
    tokenizer = Tokenizer.from_file(str(demo_model_paths()["target"] / "tokenizer.json"))
    for name, found, may_cut in (
        ("prose", prose, True),
        ("chat", chats, False),
        ("edit", edits, False),
    ):
        prompts = chosen(list(found()), may_cut, tokenizer, random.Random(name))
        lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}: {len(prompts)} prompts")


if __name__ == "__main__":
    main()
