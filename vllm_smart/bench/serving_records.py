"""What online serving measured. Decides nothing."""

from pydantic import BaseModel, ConfigDict

PERCENTILES = (50, 90, 99)


class Latencies(BaseModel):
    """Percentiles in milliseconds over requests (ITL: over tokens)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: float
    p90: float
    p99: float


class ServingRecord(BaseModel):
    """One arm under one arrival rate, as `vllm bench serve` saw it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drafter: str
    workload: str
    arm: str
    rate: float  # requests per second, asked for
    burstiness: float = 1.0  # of arrivals; 1: a Poisson process
    repeat: int
    started_at: str  # ISO 8601, UTC
    load_1m: float
    completed: int
    duration_s: float
    tokens_per_s: float  # generated
    ttft_ms: Latencies
    tpot_ms: Latencies
    itl_ms: Latencies
    # Of each request, as they were sent, which is the same for all arms of a round. Without these in
    # records of earlier versions.
    first_token_ms: tuple[float, ...] = ()
    per_token_ms: tuple[float, ...] = ()
