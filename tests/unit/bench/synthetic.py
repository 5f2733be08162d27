"""Results that nobody measured: throughputs are given, everything else follows."""

from vllm_smart.bench.records import Record, Results, Run
from vllm_smart.bench.suite import Suite

NUM_TOKENS = 8
ARMS = [
    {"kind": "plain"},
    {"kind": "stock_chain", "k": 3},
    {"kind": "smart", "policy": {"name": "chain", "num_tokens": 2}},
    {"kind": "smart", "policy": {"name": "smart"}},
]


def suite(**changes) -> Suite:
    settings = {
        "pair": "demo",
        "engine": {"dtype": "float32"},
        "drafters": ["eagle3"],
        "batch_sizes": [1, 4],
        "output_tokens": NUM_TOKENS,
        "repeats": 3,
        "arms": ARMS,
    }
    return Suite.model_validate({**settings, **changes})


def run(
    batch_size: int, tokens_per_s: float, token_ids: list[list[int]] | None = None, **counters
) -> Run:
    """All requests in lockstep, a token each per step, at `tokens_per_s` in every phase."""
    step_s = batch_size / tokens_per_s
    return Run(
        token_ids=token_ids or [list(range(NUM_TOKENS))] * batch_size,
        first_token_s=[step_s] * batch_size,
        finish_s=[step_s * NUM_TOKENS] * batch_size,
        step_end_s=[step_s * (1 + index) for index in range(NUM_TOKENS)],
        step_tokens=[batch_size] * NUM_TOKENS,
        step_requests=[batch_size] * NUM_TOKENS,
        cpu_s=1.0,
        counters=counters,
    )


def results(
    speeds: dict[tuple[str, int], list[float]], load_1m: float = 1.0, **suite_changes
) -> Results:
    """`speeds`: decode tokens per second of each repeat, by arm and batch size."""
    records = [
        Record(
            drafter="eagle3",
            workload="code",
            arm=arm,
            batch_size=batch_size,
            repeat=repeat,
            started_at="2026-01-01T00:00:00+00:00",
            load_1m=load_1m,
            run=run(batch_size, speed),
        )
        for (arm, batch_size), by_repeat in speeds.items()
        for repeat, speed in enumerate(by_repeat)
    ]
    return Results(
        command="vllm-smart bench suite.yaml",
        environment={"cores": 2, "cpu": "A CPU", "git_commit": "abc"},
        suite=suite(**suite_changes),
        engines={"plain": {"model_runner": "Runner", "num_threads": 2}},
        records=records,
    )


def mixed_outcome(**suite_changes) -> Results:
    """Ours wins against everything at batch 1, and loses to chain-2 at batch 4."""
    return results(
        {
            ("plain", 1): [10, 10, 10],
            ("stock-chain-3", 1): [14, 15, 16],
            ("chain-2", 1): [12, 12, 13],
            ("smart", 1): [20, 20, 21],
            ("plain", 4): [40, 41, 40],
            ("stock-chain-3", 4): [30, 30, 30],
            ("chain-2", 4): [50, 50, 51],
            ("smart", 4): [45, 45, 46],
        },
        **suite_changes,
    )
