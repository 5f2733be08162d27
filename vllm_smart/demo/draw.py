"""The trees of one answer in the terminal, with the accepted path marked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from vllm_smart.kernels.evidence import BOTH, GRAMMAR, NGRAM
from vllm_smart.trace import Drafted, Step, Verified, read_steps_after

_FLUSHED_WITHIN_S = 5.0  # what is traced reaches the file within a second
# Who has guessed, but the drafter alone.
_SOURCES = {NGRAM: "  n-gram", BOTH: "  drafter and n-gram", GRAMMAR: "  grammar"}
_ACCEPTED, _REJECTED, _TARGET = "bold green", "dim", "bold cyan"


@dataclass(frozen=True)
class DrawnStep:
    """One step of a request: its tree, and what came of it."""

    drafted: Drafted
    verified: Verified

    @property
    def num_nodes(self) -> int:
        """Draft nodes verified."""
        return len(self.verified.verified)


def steps_of(request: str, steps: Sequence[Step]) -> list[DrawnStep]:
    """The steps of one request that have ended, in order.

    Args:
        request: the server's name of it; the engine's names begin with it.
        steps: of a trace.
    """
    found = []
    for step in steps:
        if step.outcome is None:
            continue
        drafted = [each for each in step.decision.requests if each.request.startswith(request)]
        verified = [each for each in step.outcome.requests if each.request.startswith(request)]
        found += [DrawnStep(*pair) for pair in zip(drafted, verified, strict=False)]
    return found


def wait_for_steps(trace: Path, offset: int, request: str) -> list[DrawnStep]:
    """The steps of an answer that has just come; empty if the trace has none of it.

    Args:
        trace: of the server.
        offset: its size before the request.
        request: the server's name of it.

    Raises:
        TraceError: the trace cannot be read.
    """
    found: list[DrawnStep] = []
    end = time.monotonic() + _FLUSHED_WITHIN_S
    while time.monotonic() < end:
        time.sleep(0.5)
        now = steps_of(request, read_steps_after(trace, offset))
        if found and len(now) == len(found):
            break
        found = now
    return found


def drawn(step: DrawnStep, number: int, text_of: Callable[[int], str]) -> RenderableType:
    """A step's tree: what was guessed, what was accepted, and the token that the target added.

    Args:
        step: with its tree.
        number: of the step.
        text_of: the text of a token.
    """
    tree, verified = step.drafted, step.verified
    accepted = len(verified.accepted)
    head = Text(f"step {number}: {step.num_nodes} guessed, {accepted} accepted, {accepted + 1} tokens")
    root = Tree(head, guide_style="dim")
    places = {0: root}
    for node in sorted(verified.verified):  # parents come before their children
        on_path = node in verified.accepted
        label = Text("✔ " if on_path else "  ", style=_ACCEPTED if on_path else _REJECTED)
        label.append(shown(text_of(int(tree.token[node]))))
        likely = f"{float(tree.path_prob[node]):.0%}"
        label.append(f"  {likely}{_SOURCES.get(int(tree.source[node]), '')}", style="dim")
        places[node] = places[int(tree.parent[node])].add(label)
    last = verified.accepted[-1] if verified.accepted else 0
    bonus = Text("+ ", style=_TARGET).append(shown(text_of(verified.bonus_token)))
    places[last].add(bonus.append("  the target's own", style="dim"))
    return root


def shown(text: str) -> str:
    """A token's text with its spaces and line ends to be seen."""
    return repr(text)[1:-1].replace(" ", "␣")


def answer_with_paths(steps: Sequence[DrawnStep], text_of: Callable[[int], str]) -> Text:
    """The answer, guessed tokens in one colour and the target's own in another."""
    text = Text()
    for token, is_guess in _tokens(steps):
        text.append(text_of(token), style=_ACCEPTED if is_guess else _TARGET)
    return text


def _tokens(steps: Sequence[DrawnStep]) -> Iterator[tuple[int, bool]]:
    for step in steps:
        for node in step.verified.accepted:
            yield int(step.drafted.token[node]), True
        yield step.verified.bonus_token, False


def drawn_steps(steps: Sequence[DrawnStep], most: int, text_of: Callable[[int], str]) -> RenderableType:
    """The first steps that have trees, at most `most` of them."""
    with_trees = [(number, step) for number, step in enumerate(steps, start=1) if step.num_nodes]
    return Group(*(drawn(step, number, text_of) for number, step in with_trees[:most]))
