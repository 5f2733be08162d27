"""The texts that a suite decodes, and the prompts it takes of them. None were trained on."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from vllm_smart.bench.per_batch import PerBatch, at_batch
from vllm_smart.bench.texts import KINDS, Kind, prompts_of, texts
from vllm_smart.errors import ConfigError

Text = Literal[Kind, "mix"]
_FIRST_ROUND = 1000  # rounds before it warm up; seeds are not negative
# A part of such a prompt is another task.
_WHOLE: tuple[Kind, ...] = ("chat", "edit", "retrieval", "agent")


class Workload(BaseModel):
    """What is decoded, and how it is sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Text = Field(
        default="code",
        description="code: held-out standard-library source; prose: Python's documentation; chat: "
        "a docstring asks for a function; edit: the answer repeats the prompt, but for a name; "
        "retrieval: it quotes the prompt; agent: edits of one function, one after another, which "
        "hardly differ; mix: the first four, in turn.",
    )
    file: Path | None = Field(
        default=None,
        description='Prompts of your own in place of `text`: JSONL, a {"prompt": "..."} a line.',
    )
    prompt_tokens: PerBatch = Field(
        default=128,
        description="Most tokens of a prompt. Longer code and prose is cut; other longer prompts, "
        "and code and prose of less than half as many, are left out.",
    )
    fewest_prompt_tokens: PositiveInt | None = Field(
        default=None,
        description="Each prompt has a limit of its own, between this and prompt_tokens, evenly "
        "spread over powers of two, or the shortest such text. null: all have prompt_tokens.",
    )
    temperature: float = Field(default=0.0, ge=0.0)
    json_schema: dict[str, Any] | None = Field(
        default=None,
        description="Answers are bound to it. It must allow as long ones as the suite decodes: they "
        "go on without a grammar where it ends. null: answers are free.",
    )
    name: str | None = Field(default=None, min_length=1, description="null: made from the text.")
    batch_sizes: list[PositiveInt] | None = Field(default=None, description="null: the suite's.")

    @model_validator(mode="after")
    def _check_lengths(self) -> "Workload":
        fewest, most = self.fewest_prompt_tokens, self.prompt_tokens
        if fewest is not None and fewest > (most if isinstance(most, int) else min(most.values())):
            raise ValueError(
                f"fewest_prompt_tokens={fewest}: is more than prompt_tokens={most}. Lower it."
            )
        return self

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of our text that its prompts take in turn."""
        if self.file is not None:
            return ()
        return KINDS if self.text == "mix" else (self.text,)

    @property
    def label(self) -> str:
        """Its name in reports."""
        text = self.text if self.file is None else self.file.stem
        return self.name or (f"{text}-T{self.temperature:g}" if self.temperature else text)


@cache
def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer  # comes with vLLM

    return Tokenizer.from_file(str(file))


@cache
def _tokenised(text: Kind | Path, tokenizer: Path) -> list[list[int]]:
    found = prompts_of(text) if isinstance(text, Path) else texts(text)
    return [encoded.ids for encoded in _tokenizer(tokenizer).encode_batch(found)]


def _is_whole(text: Kind | Path) -> bool:
    """Whether its prompts are not cut."""
    return isinstance(text, Path) or text in _WHOLE


class Prompts:
    """The prompts of one workload, the same for every arm of a round."""

    def __init__(self, workload: Workload, seed: int, tokenizer: Path) -> None:
        """`tokenizer`: a file tokenizer.json."""
        self._workload, self._seed, self._tokenizer = workload, seed, tokenizer
        self._sources = (workload.file,) if workload.file is not None else workload.kinds

    def as_text(self, prompt: list[int]) -> str:
        """The text of token ids with its special tokens, but for what the tokenizer adds again."""
        tokenizer = _tokenizer(self._tokenizer)
        first = len(tokenizer.encode("").ids)
        text: str = tokenizer.decode(prompt[first:], skip_special_tokens=False)
        return text

    def choose(self, batch_size: int, repeat: int) -> list[list[int]]:
        """Token ids of `batch_size` prompts, different ones as long as there are enough.

        Raises:
            ConfigError: no prompt of the workload fits its `prompt_tokens`.
        """
        most = at_batch(self._workload.prompt_tokens, batch_size)
        sources = self._sources
        rng = np.random.default_rng([self._seed, batch_size, repeat + _FIRST_ROUND])
        fewest = self._workload.fewest_prompt_tokens
        if fewest is not None:
            return self._of_many_lengths(batch_size, fewest, most, rng)
        pools = []
        for source in sources:
            fitting = self._fitting(source, most)
            order = rng.permutation(len(fitting))
            if source == "agent":
                order = np.roll(np.arange(len(fitting)), -order[0])
            pools.append([fitting[index] for index in order])
        return [
            pools[index % len(sources)][index // len(sources) % len(pools[index % len(sources)])]
            for index in range(batch_size)
        ]

    def _of_many_lengths(
        self, batch_size: int, fewest: int, most: int, rng: np.random.Generator
    ) -> list[list[int]]:
        limits = np.exp2(rng.uniform(np.log2(fewest), np.log2(most), batch_size)).astype(int)
        found = []
        for index, limit in enumerate(limits):
            source = self._sources[index % len(self._sources)]
            if _is_whole(source):
                limit = max(limit, min(map(len, _tokenised(source, self._tokenizer))))
            fitting = self._fitting(source, int(limit))
            found.append(fitting[rng.integers(len(fitting))])
        return found

    def _fitting(self, text: Kind | Path, most: int) -> list[list[int]]:
        all_ids = _tokenised(text, self._tokenizer)
        if _is_whole(text):
            found = [ids for ids in all_ids if len(ids) <= most]
        else:
            found = [ids[:most] for ids in all_ids if len(ids) >= most // 2]
        if not found:
            raise ConfigError(
                f"prompt_tokens={most}: the workload '{text}' has no such prompt. There are prompts of "
                f"{min(map(len, all_ids))} to {max(map(len, all_ids))} tokens."
            )
        return found
