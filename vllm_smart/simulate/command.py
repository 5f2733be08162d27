"""What `vllm-smart simulate` is asked for, as a setup and loads."""

import math
from dataclasses import dataclass
from pathlib import Path

from vllm_smart.config import SmartConfig, load_config
from vllm_smart.errors import ConfigError
from vllm_smart.profiling import Correction, CostTable, load
from vllm_smart.simulate.batching import EngineLimits
from vllm_smart.simulate.drafter import Expansions
from vllm_smart.simulate.known_pairs import of_number, of_state, of_trace
from vllm_smart.simulate.replica import Machine
from vllm_smart.simulate.roofline import estimate
from vllm_smart.simulate.runs import Load, Setup
from vllm_smart.simulate.workload import arriving, read_workload


@dataclass(frozen=True)
class Costs:
    """Where costs come from: a table, or a device and a model."""

    table: Path | None
    gpu: str | None
    model: Path | None
    num_ranks: int


@dataclass(frozen=True)
class Arrivals:
    """What arrives: at rates, at once, or as a file says."""

    rates: list[float]
    burst: bool
    file: Path | None
    num_requests: int
    prompt: str  # tokens, as in 96 or 32-1024
    output: str


def make_setup(
    costs: Costs,
    limits: EngineLimits,
    acceptance: str,
    config: Path | None,
    step_ms: float,
    num_replicas: int,
    seed: int,
) -> tuple[Setup, str]:
    """Everything but policies and loads, and one line about where costs come from.

    Raises:
        SmartError: a setting cannot be; the message names it.
    """
    table, limits, about = _costs(costs, limits)
    machine = Machine(table, Correction(step_ms=step_ms), sees_arrivals=costs.gpu is None)
    settings = load_config(config) if config is not None else SmartConfig()
    settings = settings.resolve_node_budget(None).resolve_shape(None)
    expansions = expansions_of(acceptance, seed)
    return Setup(settings, machine, expansions, limits, num_replicas, seed), about


def _costs(costs: Costs, limits: EngineLimits) -> tuple[CostTable, EngineLimits, str]:
    if (costs.table is None) == (costs.gpu is None):
        raise ConfigError(
            "Say where costs come from, one of both: --table TABLE.json, or --gpu NAME with "
            "--model config.json."
        )
    if costs.table is not None:
        return load(costs.table), limits, f"costs: measured, {costs.table}"
    if costs.model is None:
        raise ConfigError(f"--gpu {costs.gpu} needs --model, the config.json of the target.")
    assert costs.gpu is not None
    found = estimate(costs.gpu, costs.model, costs.num_ranks, limits.max_num_batched_tokens)
    if limits.num_kv_blocks is None:
        needed = limits.num_blocks
        fitting = found.num_kv_tokens // limits.block_size
        limits = EngineLimits(**{**vars(limits), "num_kv_blocks": min(needed, fitting)})
    return (
        found.table,
        limits,
        (
            f"costs: an ESTIMATE by roofline for {costs.num_ranks} x {costs.gpu}, with a drafter of "
            "one layer; nothing was measured"
        ),
    )


def expansions_of(acceptance: str, seed: int) -> Expansions:
    """A drafter by a number, a trace (.jsonl) or a file of `acceptance.state`.

    Raises:
        SmartError: it is none of these.
    """
    try:
        return of_number(float(acceptance), seed)
    except ValueError:
        path = Path(acceptance)
    return of_trace(path) if path.suffix == ".jsonl" else of_state(path, seed)


def make_loads(arrivals: Arrivals, seed: int) -> list[Load]:
    """What is served, load by load.

    Raises:
        ConfigError: nothing arrives, or a setting cannot be.
    """
    if arrivals.file is not None:
        return [Load(arrivals.file.name, None, read_workload(arrivals.file))]
    prompt, output = _span("--prompt", arrivals.prompt), _span("--output", arrivals.output)
    loads = []
    for rate in sorted(arrivals.rates):
        if not (rate > 0 and math.isfinite(rate)):
            raise ConfigError(f"--rate {rate}: must be above 0; for all at once pass --burst.")
        work = arriving(rate, arrivals.num_requests, prompt, output, seed)
        loads.append(Load(f"{rate:g}/s", rate, work))
    if arrivals.burst:
        work = arriving(math.inf, arrivals.num_requests, prompt, output, seed)
        loads.append(Load("burst", None, work))
    if not loads:
        raise ConfigError("Say what arrives: --rate REQUESTS_PER_SECOND, --burst or --arrivals FILE.")
    return loads


def _span(setting: str, text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    try:
        span = int(low), int(high or low)
    except ValueError:
        span = 0, 0
    if not 1 <= span[0] <= span[1]:
        raise ConfigError(f"{setting} {text!r}: must be tokens, as in 96, or fewest and most: 32-1024.")
    return span
