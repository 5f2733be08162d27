"""Policies under rates: what users would see, by simulation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from vllm_smart.config import SmartConfig
from vllm_smart.simulate.batching import EngineLimits
from vllm_smart.simulate.drafter import Expansions
from vllm_smart.simulate.replica import Machine, Replica, Served
from vllm_smart.simulate.workload import Workload
from vllm_smart.trace.replay import with_policy

_Floats = npt.NDArray[np.float64]
PLAIN = "plain"  # vLLM without drafts; `off` among policies


class Percentiles(BaseModel):
    """Milliseconds."""

    model_config = ConfigDict(frozen=True)

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: _Floats) -> "Percentiles":
        """Zeros of nothing."""
        if not len(values):
            return cls(p50=0.0, p90=0.0, p99=0.0)
        p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
        return cls(p50=p50, p90=p90, p99=p99)


class Point(BaseModel):
    """A policy under one load."""

    model_config = ConfigDict(frozen=True)

    policy: str
    load: str  # the rate in requests per second, `burst`, or the file
    rate: float | None  # requests per second that were asked for; None where there is no such number
    num_requests: int
    duration_s: float  # until the last token
    tokens_per_s: float
    ttft_ms: Percentiles  # from arrival to the first token
    tpot_ms: Percentiles  # per token after the first, over requests
    itl_ms: Percentiles  # between two messages of a request, which may bring several tokens
    mean_rows: float  # of a step
    acceptance_length: float  # tokens per request and verified tree; 1 without drafts
    drafting_share: float  # of steps, in which the drafter ran
    num_preemptions: int


@dataclass(frozen=True)
class Load:
    """Requests, and what they are called."""

    name: str
    rate: float | None
    workload: Workload
    warm_up: Workload | None = None  # served before, by each engine; counts for nothing


@dataclass(frozen=True)
class Setup:
    """Everything but policy and load."""

    config: SmartConfig  # growth limits, settings of acceptance and costs; its node budget resolved
    machine: Machine
    expansions: Expansions
    limits: EngineLimits = field(default_factory=EngineLimits)
    num_replicas: int = 1
    seed: int = 0


def simulate(
    setup: Setup,
    policies: Sequence[str],
    loads: Sequence[Load],
    say: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Every policy under every load.

    Args:
        policies: `plain`, or as for `trace.replay.with_policy`.
        say: told of each point when it is there.

    Raises:
        TraceError: there is no such policy.
        ConfigError: a request could never be served.
    """
    configs = {name: with_policy(setup.config, "off" if name == PLAIN else name) for name in policies}
    points = []
    for load in loads:
        for name, config in configs.items():
            points.append(_point(setup, name, config, load))
            say(points[-1])
    return points


def _point(setup: Setup, name: str, config: SmartConfig, load: Load) -> Point:
    work, ttft, tpot, served_by = load.workload, [], [], []
    for index in range(min(setup.num_replicas, work.num_requests)):
        part, numbers = work.of_replica(index, setup.num_replicas)
        replica = Replica(config, setup.machine, setup.expansions, setup.limits, setup.seed)
        if load.warm_up is not None:
            replica.serve(load.warm_up, work.num_requests + np.arange(load.warm_up.num_requests))
        served = replica.serve(part, numbers)
        ttft.append(served.first_ms - part.arrival_ms)
        several = part.output_tokens > 1
        spans = (served.last_ms - served.first_ms)[several]
        tpot.append(spans / (part.output_tokens[several] - 1))
        served_by.append(served)
    total = _total(served_by)
    duration_s = max(float(served.last_ms.max()) for served in served_by) / 1e3
    return Point(
        policy=name,
        load=load.name,
        rate=load.rate,
        num_requests=work.num_requests,
        duration_s=duration_s,
        tokens_per_s=total("num_tokens") / duration_s,
        ttft_ms=Percentiles.of(np.concatenate(ttft)),
        tpot_ms=Percentiles.of(np.concatenate(tpot)),
        itl_ms=Percentiles.of(np.concatenate([served.gaps_ms for served in served_by])),
        mean_rows=total("computed_tokens") / total("num_steps"),
        acceptance_length=1.0 + total("num_accepted") / max(total("num_verified_trees"), 1),
        drafting_share=total("num_drafting_steps") / total("num_steps"),
        num_preemptions=total("num_preemptions"),
    )


def _total(served: Sequence[Served]) -> Callable[[str], int]:
    return lambda name: sum(getattr(each, name) for each in served)
