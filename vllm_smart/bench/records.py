"""Raw results: what was observed, and the quantities that follow from it. Decides nothing."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_smart.bench.plan import planned_runs
from vllm_smart.bench.serving_records import ServingRecord
from vllm_smart.bench.suite import Suite
from vllm_smart.errors import ConfigError, first_fault


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
    step_verify_s: list[float] | None = None  # [num_steps] in target forwards; None on GPUs
    step_draft_s: list[float] | None = None  # [num_steps] in the drafter, all levels
    cpu_s: float  # of the engine's process, all threads
    waited_s: float | None = None  # they stood ready without a core; None where the kernel is silent
    energy_j: float | None = None  # of the processor packages; None where RAPL cannot be read
    # What our worker counted meanwhile, by name; empty for stock vLLM. Histograms are lists by
    # bucket, or mappings from upper bound to cumulative count.
    counters: dict[str, float | list[float] | dict[str, float]]

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

    @property
    def num_decode_steps(self) -> int:
        """Steps after every request has its first token."""
        return sum(1 for _ in self._decode_steps())

    @property
    def step_ms(self) -> float:
        """Mean milliseconds of a decoding step; NaN if there is none."""
        begin_s, num_steps = max(self.first_token_s), self.num_decode_steps
        return 1e3 * (self.step_end_s[-1] - begin_s) / num_steps if num_steps else math.nan

    def mean_step_ms(self, part: Literal["verify", "draft"]) -> float:
        """Mean milliseconds of a decoding step that go into a part of it; NaN where unknown."""
        seconds = self.step_verify_s if part == "verify" else self.step_draft_s
        steps = list(self._decode_steps())
        if seconds is None or not steps:
            return math.nan
        return 1e3 * sum(seconds[index] for index in steps) / len(steps)

    @property
    def joules_per_token(self) -> float:
        """Energy of the processor packages per generated token; NaN where unknown."""
        return math.nan if self.energy_j is None else self.energy_j / self.num_tokens

    @property
    def decode_step_ms(self) -> list[float]:
        """Milliseconds of each decoding step, the first left out, in which all requests emitted."""
        every = len(self.token_ids)
        return [
            1e3 * (self.step_end_s[index] - self.step_end_s[index - 1])
            for index in list(self._decode_steps())[1:]
            if self.step_requests[index] == self.step_requests[index - 1] == every
        ]

    def count(self, name: str) -> float:
        """A counter; NaN where it was not counted."""
        value = self.counters.get(name, math.nan)
        assert isinstance(value, float)
        return value

    def counted(self, numerator: str, denominator: str) -> float:
        """The ratio of two counters; NaN where nothing was counted."""
        below = self.count(denominator)
        return self.count(numerator) / below if below else math.nan

    def _decode_steps(self) -> Iterator[int]:
        """Indices of the steps of the decode phase."""
        begin_s = max(self.first_token_s)
        return (index for index, end in enumerate(self.step_end_s) if end > begin_s)

    def _rate(self, begin_s: float, end_s: float) -> float:
        """Tokens per second of the steps that end after `begin_s`, up to `end_s`; NaN if none."""
        tokens = sum(tokens for end, tokens, _ in self._steps() if begin_s < end <= end_s)
        return tokens / (end_s - begin_s) if end_s > begin_s else math.nan

    def _steps(self) -> Iterator[tuple[float, int, int]]:
        return zip(self.step_end_s, self.step_tokens, self.step_requests, strict=True)


class Record(_Result):
    """One measurement."""

    drafter: str
    workload: str
    arm: str
    batch_size: int
    repeat: int
    heat: int = 0  # side-by-side run of this round: its arms took turns, plain decoding among them
    started_at: str  # ISO 8601, UTC
    load_1m: float  # the machine's load average before it
    run: Run


class Difference(_Result):
    """A request whose greedy text differs from plain decoding's, and how close a call it was."""

    drafter: str
    workload: str
    arm: str
    batch_size: int
    repeat: int
    request: int
    index: int  # of the first other token
    # Log-probability that the target gives plain decoding's token, less that of the arm's; None
    # where the arm's is not among its likeliest.
    gap: float | None


class Results(_Result):
    """Everything that one benchmark produced; it grows while it runs."""

    command: str
    environment: dict[str, Any]
    suite: Suite
    engines: dict[str, dict[str, Any]]  # what each engine reported at its start
    records: list[Record]
    # K of `schedule: best` by batch size, by "DRAFTER WORKLOAD".
    best_schedules: dict[str, dict[int, int]] = {}
    differences: list[Difference] = []
    serving: list[ServingRecord] = []

    @property
    def missing(self) -> dict[str, int]:
        """Arms and rounds that were not measured, by drafter, workload and batch size."""
        made = {
            (f"{r.drafter} {r.workload} batch {r.batch_size}", r.arm, r.repeat) for r in self.records
        }
        planned = {
            (f"{run.drafter} {run.workload.label} batch {run.batch_size}", run.arm.label, run.repeat)
            for drafter in self.suite.drafters
            for run in planned_runs(self.suite, drafter)
            if run.is_measured
        }
        return dict(sorted(Counter(load for load, _, _ in planned - made).items()))

    def save(self, path: Path) -> None:
        """Write as JSON; a reader never sees half a file."""
        aside = path.with_suffix(".partial")
        aside.write_text(self.model_dump_json(), encoding="utf-8")
        os.replace(aside, path)


def load_results(path: Path) -> Results:
    """Read what `Results.save` wrote.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        raise ConfigError(
            f"{path}: not the results of this version's `vllm-smart bench` ({first_fault(error)}). "
            "Run the suite again."
        ) from error
