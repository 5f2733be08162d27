"""In which order a suite's runs are made. Starts nothing."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_smart.bench.arms import Arm, StockScheduleArm
from vllm_smart.bench.per_batch import at_batch
from vllm_smart.bench.suite import Suite
from vllm_smart.bench.workloads import Workload

WARMUP = -1  # "repeats" below 0 are discarded; they have prompts of their own


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
