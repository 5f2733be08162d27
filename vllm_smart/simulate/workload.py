"""What requests arrive, and when."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_smart.errors import ConfigError

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """Requests in the order of their arrival, [num_requests] each."""

    arrival_ms: npt.NDArray[np.float64]  # from 0 on, ascending
    prompt_tokens: _Ints  # at least 1
    output_tokens: _Ints  # at least 1

    @property
    def num_requests(self) -> int:
        """Requests in all."""
        return len(self.arrival_ms)

    def of_replica(self, replica: int, num_replicas: int) -> "tuple[Workload, _Ints]":
        """What round robin sends to one of several replicas, and the requests' numbers."""
        chosen = np.arange(replica, self.num_requests, num_replicas)
        part = self.arrival_ms[chosen], self.prompt_tokens[chosen], self.output_tokens[chosen]
        return Workload(*part), chosen


class _Line(BaseModel):
    """One request of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: float = Field(ge=0, allow_inf_nan=False)  # seconds
    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=1)


def arriving(
    rate: float, num_requests: int, prompt: tuple[int, int], output: tuple[int, int], seed: int
) -> Workload:
    """Requests that arrive as a Poisson process, or all at once.

    Args:
        rate: requests per second; infinite: a burst.
        num_requests: at least 1.
        prompt: fewest and most tokens of a prompt; uniform between them.
        output: the same of what is generated.
        seed: of times and lengths; the same requests come at any rate.
    """
    rng = np.random.default_rng(seed)
    lengths = [rng.integers(low, high + 1, num_requests) for low, high in (prompt, output)]
    gaps = rng.exponential(1.0, num_requests)
    gaps[0] = 0.0
    arrival_ms = np.cumsum(gaps) * (1e3 / rate)
    return Workload(arrival_ms, *lengths)


def read_workload(path: Path) -> Workload:
    """Requests of a file: a JSON object a line, with `time` in seconds and numbers of tokens.

    Raises:
        ConfigError: it cannot be read, or a line is something else.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(
            f"--arrivals {path}: cannot be read ({reason}). Give a JSONL file."
        ) from error
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            lines.append(_Line.model_validate(json.loads(line)))
        except (ValidationError, ValueError) as error:
            raise ConfigError(
                f'--arrivals {path}, line {number}: must be like {{"time": 1.5, "prompt_tokens": 100, '
                '"output_tokens": 64}, times in seconds.'
            ) from error
    if not lines:
        raise ConfigError(f"--arrivals {path}: has no request. Give a JSONL file with at least one.")
    lines.sort(key=lambda line: line.time)
    return Workload(
        np.array([line.time * 1e3 for line in lines]),
        np.array([line.prompt_tokens for line in lines]),
        np.array([line.output_tokens for line in lines]),
    )
