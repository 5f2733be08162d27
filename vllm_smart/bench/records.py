"""Raw results: what was observed, and the quantities that follow from it. Decides nothing."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vllm_smart.bench.suite import Suite


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Result):
    """One batch of requests, submitted together; seconds count from the submission."""

    token_ids: list[list[int]]  # [num_requests][num_tokens]
    first_token_s: list[float]  # [num_requests]
    finish_s: list[float]  # [num_requests]
    step_end_s: list[float]  # [num_steps]
    step_tokens: list[int]  # [num_steps] tokens emitted by each step
    step_requests: list[int]  # [num_steps] requests that emitted in each step
    cpu_s: float  # of the engine's process, all threads
    counters: dict[str, float]  # what our worker counted meanwhile; empty for stock vLLM

    @property
    def num_tokens(self) -> int:
        """All generated tokens."""
        return sum(self.step_tokens)

    @property
    def tokens_per_s(self) -> float:
        """Throughput from submission to the last token, prefill included."""
        return self.num_tokens / self.step_end_s[-1]

    @property
    def decode_tokens_per_s(self) -> float:
        """Throughput after every request has its first token, until the last one has ended."""
        return self._rate(max(self.first_token_s), self.step_end_s[-1])

    @property
    def full_batch_tokens_per_s(self) -> float:
        """Throughput while all requests decode: as under steady load, without stragglers."""
        return self._rate(max(self.first_token_s), min(self.finish_s))

    @property
    def acceptance_length(self) -> float:
        """Tokens per request and step of the decode phase."""
        tokens, requests = 0, 0
        for end, step_tokens, step_requests in self._steps():
            if end > max(self.first_token_s):
                tokens, requests = tokens + step_tokens, requests + step_requests
        return tokens / requests if requests else math.nan

    @property
    def tpot_ms(self) -> list[float]:
        """[num_requests] milliseconds per token after the first."""
        triples = zip(self.first_token_s, self.finish_s, self.token_ids, strict=True)
        return [1e3 * (end - first) / (len(ids) - 1) for first, end, ids in triples]

    def counted(self, numerator: str, denominator: str) -> float:
        """The ratio of two counters; NaN where nothing was counted."""
        below = self.counters.get(denominator, 0.0)
        return self.counters.get(numerator, math.nan) / below if below else math.nan

    def _rate(self, begin_s: float, end_s: float) -> float:
        """Tokens per second of the steps that end after `begin_s`, up to `end_s`; NaN if none."""
        tokens = sum(tokens for end, tokens, _ in self._steps() if begin_s < end <= end_s)
        return tokens / (end_s - begin_s) if end_s > begin_s else math.nan

    def _steps(self) -> Iterator[tuple[float, int, int]]:
        return zip(self.step_end_s, self.step_tokens, self.step_requests, strict=True)


class Record(_Result):
    """One measurement."""

    drafter: str
    arm: str
    batch_size: int
    repeat: int
    position: int  # in the order of arms of this repeat
    started_at: str  # ISO 8601, UTC
    load_1m: float  # the machine's load average before it
    run: Run


class Results(_Result):
    """Everything that one benchmark produced; it grows while it runs."""

    command: str
    environment: dict[str, Any]
    suite: Suite
    engines: dict[str, dict[str, Any]]  # what each engine reported at its start
    records: list[Record]

    @property
    def is_complete(self) -> bool:
        """Whether every planned measurement was made."""
        suite = self.suite
        planned = len(suite.drafters) * len(suite.batch_sizes) * suite.repeats * len(suite.arms)
        return len(self.records) == planned

    def save(self, path: Path) -> None:
        """Write as JSON; a reader never sees half a file."""
        aside = path.with_suffix(".partial")
        aside.write_text(self.model_dump_json(), encoding="utf-8")
        os.replace(aside, path)


def load_results(path: Path) -> Results:
    """Read what `Results.save` wrote."""
    return Results.model_validate_json(path.read_text(encoding="utf-8"))
