"""The same prompts with and without speculation, in turns, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_smart.demo.ask import Answer, Server


@dataclass(frozen=True)
class Pair:
    """One prompt, asked both ways."""

    plain: Answer
    speculating: Answer

    @property
    def speedup(self) -> float:
        """Of speculation over plain decoding."""
        return self.speculating.tokens_per_s / self.plain.tokens_per_s

    @property
    def is_same_text(self) -> bool:
        """Whether both ways gave the same text."""
        return self.plain.text == self.speculating.text


def ask_both_ways(server: Server, prompts: Sequence[str], max_tokens: int) -> Iterator[Pair]:
    """Ask each prompt both ways, one after the other; who goes first alternates."""
    for number, prompt in enumerate(prompts):
        answers: dict[bool, Answer] = {}
        for speculates in (number % 2 == 0, number % 2 != 0):
            answers[speculates] = server.ask(prompt, max_tokens, speculates)
        yield Pair(plain=answers[False], speculating=answers[True])


def tokens_per_s(answers: Sequence[Answer]) -> float:
    """Of all answers together."""
    return sum(answer.num_tokens for answer in answers) / sum(answer.seconds for answer in answers)


def overall_speedup(pairs: Sequence[Pair]) -> float:
    """Tokens per second of all prompts with speculation over those without."""
    with_trees = tokens_per_s([pair.speculating for pair in pairs])
    return with_trees / tokens_per_s([pair.plain for pair in pairs])
