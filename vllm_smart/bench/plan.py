"""In which order a suite's runs are made, and about how long they take. Starts nothing."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_smart.bench.arms import Arm, PlainArm, SmartArm, StockChainArm, StockScheduleArm
from vllm_smart.bench.per_batch import at_batch
from vllm_smart.bench.suite import Suite
from vllm_smart.bench.workloads import Workload

WARMUP = -1  # "repeats" below 0 are discarded; they have prompts of their own
# Of the shipped drafters, for estimates only: of chains, 1 + _MOST_ACCEPTED * (1 - _DECAY ** K).
_MOST_ACCEPTED, _DECAY = 1.5, 0.6
_NODES_OF_POLICY = {"off": 0, "paper": 6}
_NODES_WHEN_IT_PAYS, _PAYS_UP_TO = 4, 4  # draft nodes of a controller; batch size
_PREFILL_SHARE = 0.5  # a prompt's token costs less than one of a decoding step


@dataclass(frozen=True)
class PlannedRun:
    """One run of one arm."""

    drafter: str
    workload: Workload
    batch_size: int
    repeat: int
    position: int  # in its round
    arm: Arm

    @property
    def is_measured(self) -> bool:
        """Whether it counts; others warm the arm up."""
        return self.repeat >= 0


def plan(suite: Suite, drafter: str) -> Iterator[PlannedRun]:
    """All runs with `drafter` in order: warm-up, then round by round over all loads.

    Rounds are outermost so that a run that is stopped early has compared all arms at all loads, and
    so that a machine that becomes slower does so for all of them. Within a round and load, the order
    of arms is random.
    """
    repeats = [WARMUP - index for index in range(suite.warmup_runs)] + list(range(suite.repeats))
    for repeat in repeats:
        for workload in suite.workloads:
            for batch_size in suite.sizes_of(workload):
                arms = [arm for arm in suite.arms if _runs(arm, batch_size, repeat)]
                key = f"{suite.seed} {drafter} {workload.label} {batch_size} {repeat}"
                random.Random(key).shuffle(arms)
                for position, arm in enumerate(arms):
                    yield PlannedRun(drafter, workload, batch_size, repeat, position, arm)


def _runs(arm: Arm, batch_size: int, repeat: int) -> bool:
    # The best schedule is made of the first round's chains, whose engine it shares.
    is_late = isinstance(arm, StockScheduleArm) and arm.schedule == "best"
    return arm.runs_at(batch_size) and not (is_late and repeat <= 0)


def num_runs(suite: Suite) -> int:
    """All runs of a suite, discarded ones included."""
    return sum(1 for drafter in suite.drafters for _ in plan(suite, drafter))


def num_tokens(suite: Suite, run: PlannedRun) -> int:
    """Tokens that each request of `run` generates."""
    setting = suite.output_tokens if run.is_measured else suite.warmup_tokens
    return at_batch(setting, run.batch_size)


def estimated_s(suite: Suite, run: PlannedRun) -> float:
    """About how many seconds `run` takes, by the suite's `cost_hint`."""
    nodes = expected_nodes(run.arm, run.batch_size)
    hint, size = suite.cost_hint, run.batch_size
    step_ms = max(hint.step_ms, hint.token_ms * size * (1 + nodes))
    num_steps = num_tokens(suite, run) / (1 + _MOST_ACCEPTED * (1 - _DECAY**nodes))
    prompts = at_batch(run.workload.prompt_tokens, size) * size
    return 1e-3 * (num_steps * step_ms + _PREFILL_SHARE * hint.token_ms * prompts)


def expected_nodes(arm: Arm, batch_size: int) -> int:
    """About how many draft nodes `arm` verifies per request and step."""
    if isinstance(arm, PlainArm):
        return 0
    if isinstance(arm, StockChainArm):
        return arm.k
    if isinstance(arm, SmartArm) and arm.policy_name in ("chain", "fixed_tree"):
        default = {"chain": 5, "fixed_tree": 60}[arm.policy_name]
        return int(arm.policy.get("num_tokens", arm.policy.get("num_nodes", default)))
    if isinstance(arm, SmartArm) and arm.policy_name in _NODES_OF_POLICY:
        return _NODES_OF_POLICY[arm.policy_name]
    return _NODES_WHEN_IT_PAYS if batch_size <= _PAYS_UP_TO else 1


def estimated_minutes(suite: Suite) -> float:
    """About how long the runs of a suite take, engine starts included, serving not."""
    from vllm_smart.bench.engines import engine_names

    runs = [run for drafter in suite.drafters for run in plan(suite, drafter)]
    starts = {name for drafter in suite.drafters for name in engine_names(suite, drafter)}
    seconds = sum(estimated_s(suite, run) for run in runs)
    num_starts = len(starts) + len(suite.drafters) * bool(suite.trace_batch_sizes)
    return (seconds + num_starts * suite.cost_hint.engine_start_s) / 60
