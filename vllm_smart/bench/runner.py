"""Runs a suite: every arm in every round, in shuffled order, one at a time."""

import os
import random
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vllm_smart.bench.arms import Arm, SmartArm
from vllm_smart.bench.engines import Engines
from vllm_smart.bench.environment import describe_environment
from vllm_smart.bench.pair import WARMUP, Prompts, pair_folders
from vllm_smart.bench.records import Record, Results, Run
from vllm_smart.bench.suite import Suite

RESULTS_FILE = "results.json"


def rounds(suite: Suite, drafter: str) -> Iterator[tuple[int, int, list[Arm]]]:
    """Batch size, repeat and order of arms of each round; the repeat `WARMUP` is discarded.

    A machine that becomes slower does so for all arms of a round, and in no particular order.
    """
    for batch_size in suite.batch_sizes:
        for repeat in (WARMUP, *range(suite.repeats)):
            arms = list(suite.arms)
            random.Random(f"{suite.seed} {drafter} {batch_size} {repeat}").shuffle(arms)
            yield batch_size, repeat, arms


def num_runs(suite: Suite) -> int:
    """All runs of a suite, discarded ones included."""
    return len(suite.drafters) * len(suite.batch_sizes) * (suite.repeats + 1) * len(suite.arms)


class Runner:
    """One execution of a suite; `results` grows, and is saved after every measurement."""

    def __init__(self, suite: Suite, out: Path, num_threads: int, command: str) -> None:
        """Args:
        suite: what to run.
        out: folder of everything that is written.
        num_threads: of each engine's parallel regions.
        command: the command line, for the record.
        """
        out.mkdir(parents=True, exist_ok=True)
        self.results = Results(
            command=command,
            environment=describe_environment(num_threads),
            suite=suite,
            engines={},
            records=[],
        )
        self._suite, self._out, self._num_threads = suite, out, num_threads
        self._prompts = Prompts(suite)

    def run(self, say: Callable[[str], None], advance: Callable[[], None]) -> None:
        """Run everything.

        Args:
            say: takes a line about what is going on.
            advance: called after each of the `num_runs`.

        Raises:
            EngineError: an engine died; what was measured before is saved.
        """
        say("preparing the models")
        folders = pair_folders(self._suite, self._out / "pairs")
        with Engines(self._suite, folders, self._out, self._num_threads) as engines:
            for drafter in self._suite.drafters:
                say(f"{drafter}: starting engines")
                for name, description in engines.start(drafter):
                    self.results.engines[name] = description
                    say(f"{name}: ready")
                for batch_size, repeat, arms in rounds(self._suite, drafter):
                    for position, arm in enumerate(arms):
                        self._measure(engines, drafter, arm, (batch_size, repeat, position), say)
                        advance()

    def _measure(
        self,
        engines: Engines,
        drafter: str,
        arm: Arm,
        place: tuple[int, int, int],
        say: Callable[[str], None],
    ) -> None:
        """One run of `arm` at `place`: batch size, repeat, position in the round."""
        batch_size, repeat, position = place
        started_at, load_1m = datetime.now(timezone.utc), os.getloadavg()[0]
        run = Run.model_validate(engines.run(arm, drafter, self._job(arm, batch_size, repeat)))
        if repeat == WARMUP:
            return
        record = Record(
            drafter=drafter,
            arm=arm.label,
            batch_size=batch_size,
            repeat=repeat,
            position=position,
            started_at=started_at.isoformat(timespec="seconds"),
            load_1m=load_1m,
            run=run,
        )
        self.results.records.append(record)
        self.results.save(self._out / RESULTS_FILE)
        say(
            f"{drafter} batch {batch_size} repeat {repeat} {arm.label}: "
            f"{run.decode_tokens_per_s:.1f} tokens/s decoding, "
            f"{run.acceptance_length:.2f} tokens per request and step"
        )

    def _job(self, arm: Arm, batch_size: int, repeat: int) -> dict[str, Any]:
        suite = self._suite
        seeds: list[int | None] = [None] * batch_size
        # vLLM 0.32's default runner dies on CPUs on a seeded request whose prefill is chunked.
        if suite.temperature > 0 and (isinstance(arm, SmartArm) or suite.stock_runner == "v2"):
            first = 100_000 * suite.seed + 1000 * (repeat + 1)
            seeds = [first + index for index in range(batch_size)]
        return {
            "prompts": self._prompts.choose(batch_size, repeat),
            "seeds": seeds,
            "num_tokens": suite.warmup_tokens if repeat == WARMUP else suite.num_tokens,
            "temperature": suite.temperature,
        }
