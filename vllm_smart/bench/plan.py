"""In which order a suite's runs are made, and which of them side by side. Starts nothing."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from vllm_smart.bench.arms import Arm, StockScheduleArm, is_ours
from vllm_smart.bench.engines import engine_name
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
    heat: int  # which side-by-side run of its round
    arm: Arm

    @property
    def is_measured(self) -> bool:
        """Whether it counts; others warm the arm up."""
        return self.repeat >= 0


Heat = tuple[PlannedRun, ...]  # runs on different engines, which take turns


def plan(suite: Suite, drafter: str) -> Iterator[Heat]:
    """All runs with `drafter` in order: warm-up, then round by round over all loads.

    Rounds are outermost so that a run that is stopped early has compared all arms at all loads. In a
    round, arms on different engines run side by side, taking turns, so that an arm and what it is
    compared with see the same machine, second by second. Plain decoding is part of each such run, and
    our first arm runs with every arm of another engine.
    """
    repeats = [WARMUP - index for index in range(suite.warmup_runs)] + list(range(suite.repeats))
    for repeat in repeats:
        for workload in suite.workloads:
            for batch_size in suite.sizes_of(workload):
                arms = [arm for arm in suite.arms if _runs(arm, batch_size, repeat)]
                seed = f"{suite.seed} {drafter} {workload.label} {batch_size} {repeat}"
                heats = list(_heats(suite, drafter, arms, random.Random(seed), repeat >= 0))
                for heat, abreast in enumerate(heats):
                    yield tuple(
                        PlannedRun(drafter, workload, batch_size, repeat, heat, arm) for arm in abreast
                    )


def _heats(
    suite: Suite, drafter: str, arms: list[Arm], order: random.Random, is_measured: bool
) -> Iterator[list[Arm]]:
    """The arms of each side-by-side run of a round, shuffled."""
    order.shuffle(arms)
    if not is_measured:  # nothing is compared
        yield from ([arm] for arm in arms)
        return
    plain, ours = suite.plain_arm, next(filter(is_ours, arms), None)
    by_engine: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm is not plain and arm is not ours:
            by_engine.setdefault(engine_name(suite, arm, drafter), []).append(arm)
    beside = by_engine.pop(engine_name(suite, ours, drafter), []) if ours is not None else []
    heats = [list(filter(None, abreast)) for abreast in zip_longest(*by_engine.values())]
    if ours is not None:  # its own engine's other arms cannot run with it
        heats = [[ours, *others] for others in heats or [[]]] + [[arm] for arm in beside]
    for heat in heats or [[]]:
        heat.append(plain)
        order.shuffle(heat)
        yield heat


def _runs(arm: Arm, batch_size: int, repeat: int) -> bool:
    # The best schedule is made of the first round's chains, whose engine it shares.
    is_late = isinstance(arm, StockScheduleArm) and arm.schedule == "best"
    return arm.runs_at(batch_size) and not (is_late and repeat <= 0)


def planned_runs(suite: Suite, drafter: str) -> Iterator[PlannedRun]:
    """All runs with `drafter`, discarded ones included."""
    return (run for heat in plan(suite, drafter) for run in heat)


def num_runs(suite: Suite) -> int:
    """All runs of a suite, discarded ones included."""
    return sum(1 for drafter in suite.drafters for _ in planned_runs(suite, drafter))


def num_tokens(suite: Suite, run: PlannedRun) -> int:
    """Tokens that each request of `run` generates."""
    setting = suite.output_tokens if run.is_measured else suite.warmup_tokens
    return at_batch(setting, run.batch_size)
