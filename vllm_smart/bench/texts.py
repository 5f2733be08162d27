"""The prompts of a suite, made of pieces of the standard library that no model was trained on."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

from vllm_smart.demo_model import PROMPTS_FILE
from vllm_smart.demo_model.references import find_pieces
from vllm_smart.errors import ConfigError

Kind = Literal["code", "prose", "chat", "edit", "retrieval", "agent"]
KINDS: tuple[Kind, ...] = ("code", "prose", "chat", "edit")  # what `mix` takes in turn
_PIECES_OF: dict[Kind, Kind] = {"retrieval": "code", "agent": "edit"}
_MOST_TASKS = 8  # of an agent, about one function
_FOLDER = Path(__file__).parent / "prompts"


def file_of(kind: Kind) -> Path:
    """Where the references to a kind's pieces are."""
    kind = _PIECES_OF.get(kind, kind)
    return Path(PROMPTS_FILE) if kind == "code" else _FOLDER / f"{kind}.jsonl"


@cache
def texts(kind: Kind) -> list[str]:
    """All prompts of a kind, the long ones first; an agent's about one function side by side.

    Raises:
        SmartError: this Python ships too little of its library's source.
    """
    pieces = find_pieces(file_of(kind)).pieces
    if kind == "chat":
        return [chat(piece) for _, piece in pieces]
    if kind == "edit":
        return [edit(piece, reference.name) for reference, piece in pieces]
    if kind == "retrieval":
        return [retrieval(piece) for _, piece in pieces]
    if kind == "agent":
        return [task for _, piece in pieces for task in agent(piece)]
    return [piece for _, piece in pieces]


def prompts_of(file: Path) -> list[str]:
    """Prompts of a JSONL file.

    Raises:
        ConfigError: it cannot be read or has none, or a line is something else.
    """
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"file={file}: cannot be read ({reason}). Give a JSONL file.") from error
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, TypeError, KeyError):
            prompt = None
        if not isinstance(prompt, str) or not prompt:
            raise ConfigError(f'file={file}, line {number}: must be like {{"prompt": "..."}}.')
        found.append(prompt)
    if not found:
        raise ConfigError(f"file={file}: has no prompt. Give a JSONL file with at least one.")
    return found


def differences(kinds: Iterable[Kind]) -> str:
    """Where the prompts are not those referred to, in words."""
    found: dict[Kind, Any] = {kind: find_pieces(file_of(kind)) for kind in sorted(set(kinds))}
    other = [f"{kind}: {it.difference}" for kind, it in found.items() if it.difference]
    return "; ".join(other) or "as on Python " + " and ".join(
        sorted({it.made_on for it in found.values()})
    )


def chat(docstring: str) -> str:
    """A docstring's first paragraph asks; the prompt ends where the answer begins.

    Args:
        docstring: as it stands in the source, quotes included.
    """
    question = inspect.cleandoc(ast.literal_eval(docstring.strip())).split("\n\n")[0]
    return f"<|user|>{question.replace(chr(10), ' ')}<|assistant|>"


def retrieval(source: str) -> str:
    """A source, and the beginning of a quotation from its middle: the answer is the rest of it."""
    lines = textwrap.dedent(source).splitlines(keepends=True)
    start = len(lines) // 3
    begun = "".join(lines[start : start + 2])
    return f"{''.join(lines)}\n# Once more from line {start + 1} on:\n{begun}"


def agent(function: str) -> list[str]:
    """Tasks that hardly differ, as agents send them: each replaces another of the function's names."""
    tree = ast.parse(textwrap.dedent(function))
    names = {node.arg: None for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {
        node.id: None
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return [edit(function, name) for name in list(names)[:_MOST_TASKS]]


def edit(function: str, name: str) -> str:
    """A function, and the beginning of the same one with `name` replaced."""
    code = textwrap.dedent(function)
    renamed = re.sub(rf"\b{name}\b", f"new_{name}", code)
    begun = "".join(renamed.splitlines(keepends=True)[:2])
    return f"{code}\n# The same with {name} renamed to new_{name}:\n{begun}"
