"""Runs a suite: every arm in every round, arms on different engines by turns."""

import os
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vllm_smart.bench.analysis import best_schedule, first_difference
from vllm_smart.bench.arms import SmartArm, StockArm, StockScheduleArm, is_ours
from vllm_smart.bench.energy import read_energy_j, sum_j, used_j
from vllm_smart.bench.engines import (
    PLAIN,
    Engines,
    engine_name,
    schedule_ranges,
    shares_engine,
    stock_schedule,
)
from vllm_smart.bench.environment import describe_environment
from vllm_smart.bench.pair import pair_folders, tokenizer_of
from vllm_smart.bench.plan import WARMUP, Heat, PlannedRun, num_tokens, plan
from vllm_smart.bench.records import Difference, Record, Results, Run
from vllm_smart.bench.serving import serve_arms
from vllm_smart.bench.suite import Suite
from vllm_smart.bench.texts import differences
from vllm_smart.bench.workloads import Prompts

RESULTS_FILE = "results.json"
TRACED = "traced"


def trace_path(out: Path, drafter: str) -> Path:
    """Where the trace of `drafter` is written."""
    return out / "traces" / f"{drafter}.jsonl"


class Runner:
    """One execution of a suite; `results` grows, and is saved after every measurement."""

    def __init__(self, suite: Suite, out: Path, num_threads: int, command: str) -> None:
        """Args:
            suite: what to run.
            out: folder of everything that is written.
            num_threads: of each engine's parallel regions.
            command: the command line, for the record.

        Raises:
            ConfigError: a workload has no prompt that fits.
            SmartError: this Python ships too little of the source that prompts are made of.
        """
        out.mkdir(parents=True, exist_ok=True)
        self.results = Results(
            command=command,
            environment={
                **describe_environment(num_threads),
                "prompts": differences(kind for load in suite.workloads for kind in load.kinds),
            },
            suite=suite,
            engines={},
            records=[],
        )
        self._suite, self._out, self._num_threads = suite, out, num_threads
        tokenizer = tokenizer_of(suite)
        self._prompts = {
            workload.label: Prompts(workload, suite.seed, tokenizer) for workload in suite.workloads
        }
        for workload in suite.workloads:
            for batch_size in suite.sizes_of(workload):
                self._prompts[workload.label].choose(batch_size, WARMUP)

    def run(self, say: Callable[[str], None], advance: Callable[[], None]) -> None:
        """Run everything.

        Args:
            say: takes a line about what is going on.
            advance: called after each planned run.

        Raises:
            EngineError: an engine died; what was measured before is saved.
        """
        say("preparing the models")
        folders = pair_folders(self._suite, self._out / "pairs")
        if self._suite.batch_sizes:
            with Engines(self._suite, folders, self._out, self._num_threads) as engines:
                for drafter in self._suite.drafters:
                    self._run_offline(engines, drafter, say, advance)
        for record in serve_arms(self._suite, folders, self._out, self._num_threads, say):
            self.results.serving.append(record)
            self._save()

    def _run_offline(
        self, engines: Engines, drafter: str, say: Callable[[str], None], advance: Callable[[], None]
    ) -> None:
        say(f"{drafter}: starting engines")
        for name, description in engines.start(drafter):
            self.results.engines[name] = description
            say(f"{name}: ready")
        for heat in plan(self._suite, drafter):
            for run in heat:
                if isinstance(run.arm, StockScheduleArm) and run.arm.schedule == "best":
                    self._choose_schedule(run, say)
            self._measure(engines, heat, say)
            for _ in heat:
                advance()
        for difference in self._differences(engines, drafter):
            self.results.differences.append(difference)
        self._save()
        if self._suite.trace_batch_sizes:
            say(f"{drafter}: tracing")
            self._trace(engines, drafter)

    def _choose_schedule(self, run: PlannedRun, say: Callable[[str], None]) -> None:
        key = f"{run.drafter} {run.workload.label}"
        if key not in self.results.best_schedules:
            best = best_schedule(self.results, run.drafter, run.workload.label)
            self.results.best_schedules[key] = best
            say(f"{key}: best K by batch size of the first round: {best}")

    def _measure(self, engines: Engines, heat: Heat, say: Callable[[str], None]) -> None:
        started_at, load_1m = datetime.now(timezone.utc), os.getloadavg()[0]
        for planned, run in self._take_turns(engines, heat):
            if not planned.is_measured:
                continue
            record = Record(
                drafter=planned.drafter,
                workload=planned.workload.label,
                arm=planned.arm.label,
                batch_size=planned.batch_size,
                repeat=planned.repeat,
                heat=planned.heat,
                started_at=started_at.isoformat(timespec="seconds"),
                load_1m=load_1m,
                run=run,
            )
            self.results.records.append(record)
            say(
                f"{record.drafter} {record.workload} batch {record.batch_size} round {record.repeat} "
                f"{record.arm}: {run.full_batch_tokens_per_s:.1f} tokens/s decoding, "
                f"{run.acceptance_length:.2f} tokens per request and step"
            )
        self._save()

    def _take_turns(self, engines: Engines, heat: Heat) -> list[tuple[PlannedRun, Run]]:
        """Run arms side by side: the one furthest behind has the next turn, so all end together."""
        names = [engine_name(self._suite, planned.arm, planned.drafter) for planned in heat]
        for name, planned in zip(names, heat, strict=True):
            engines.ask(name, "begin", self._job(planned))
        progress = [0.0] * len(heat)
        energy_j: list[list[float | None]] = [[] for _ in heat]
        runs: dict[int, Run] = {}
        while len(runs) < len(heat):
            index = min(set(range(len(heat))) - runs.keys(), key=progress.__getitem__)
            before_j = read_energy_j()
            turn = engines.ask(names[index], "take_turn", self._suite.turn_s)
            energy_j[index].append(used_j(before_j, read_energy_j()))
            progress[index] = turn["progress"]
            if turn["run"] is not None:
                total_j = sum_j(energy_j[index])
                runs[index] = Run.model_validate({**turn["run"], "energy_j": total_j})
        return [(planned, runs[index]) for index, planned in enumerate(heat)]

    def _job(self, run: PlannedRun) -> dict[str, Any]:
        suite, arm, size = self._suite, run.arm, run.batch_size
        temperature = run.workload.temperature
        seeds: list[int | None] = [None] * size
        # vLLM 0.32's default runner dies on CPUs on a seeded request whose prefill is chunked.
        if temperature > 0 and (isinstance(arm, SmartArm) or suite.stock_runner == "v2"):
            first = 100_000 * suite.seed + 1000 * (run.repeat + suite.warmup_runs)
            seeds = [first + index for index in range(size)]
        schedule = None
        if isinstance(arm, StockArm) and shares_engine(suite, arm):
            best = self.results.best_schedules.get(f"{run.drafter} {run.workload.label}", {})
            schedule = schedule_ranges(stock_schedule(arm, best), suite.engine.max_num_seqs)
        return {
            "prompts": self._prompts[run.workload.label].choose(size, run.repeat),
            "seeds": seeds,
            "num_tokens": num_tokens(suite, run),
            "temperature": temperature,
            "json_schema": run.workload.json_schema,
            "arm": arm.label,
            "sections": suite.smart.switched(arm) if isinstance(arm, SmartArm) else None,
            "schedule": schedule,
        }

    def _differences(self, engines: Engines, drafter: str) -> Iterator[Difference]:
        """How close a call each first token was that differs from plain decoding's."""
        greedy = {w.label for w in self._suite.workloads if w.temperature == 0}
        records = [r for r in self.results.records if r.drafter == drafter and r.workload in greedy]
        plain = {
            (r.workload, r.batch_size, r.repeat): r.run
            for r in records
            if r.arm == self._suite.plain_arm.label
        }
        for record in records:
            theirs = plain.get((record.workload, record.batch_size, record.repeat))
            prompts = self._prompts[record.workload].choose(record.batch_size, record.repeat)
            for request, ours in enumerate(record.run.token_ids):
                other = theirs.token_ids[request] if theirs is not None else ours
                index = first_difference(ours, other)
                if index is None:
                    continue
                (scores,) = engines.ask(PLAIN, "score", [prompts[request] + other[:index]])
                a, b = (scores.get(str(tokens[index])) for tokens in (other, ours))
                yield Difference(
                    drafter=drafter,
                    workload=record.workload,
                    arm=record.arm,
                    batch_size=record.batch_size,
                    repeat=record.repeat,
                    request=request,
                    index=index,
                    gap=None if a is None or b is None else a - b,
                )

    def _trace(self, engines: Engines, drafter: str) -> None:
        """A run of `smart` at some loads, in an engine of its own that traces every decision."""
        ours = next((arm for arm in self._suite.arms if is_ours(arm)), None)
        if not isinstance(ours, SmartArm):
            return
        path = trace_path(self._out, drafter).absolute()
        path.parent.mkdir(exist_ok=True)
        settings = ours.model_dump() | {"name": TRACED, "trace": {"path": str(path)}}
        arm = SmartArm.model_validate(settings)
        name = f"{drafter}-{TRACED}"
        self.results.engines[name] = engines.start_one(name, arm, drafter)
        for batch_size in self._suite.trace_batch_sizes:
            run = PlannedRun(drafter, self._suite.workloads[0], batch_size, 0, 0, arm)
            self._take_turns(engines, (run,))
        engines.stop(name)  # which completes the file

    def _save(self) -> None:
        self.results.save(self._out / RESULTS_FILE)
