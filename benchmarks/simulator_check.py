"""Holds the simulator against a measured serving suite, figure by figure.

    python -m benchmarks.simulator_check [--results FOLDER] [--table TABLE] [--acceptance A] [--out DIR]

FOLDER has the results.json of a suite with a `serving` part. Requests arrive as `vllm bench serve` has
sent them: the same seeds, rates, lengths and order. The table is of the same engine, timed while
nothing else ran. A server has a scheduler and a front end beside it, so three numbers are fitted,
`Slowness`, each to a figure at the lowest rate, which is no test. All others are.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import numpy as np

from vllm_smart.bench.pair import tokenizer_of
from vllm_smart.bench.records import Results, load_results
from vllm_smart.bench.serving_config import load_in_words
from vllm_smart.bench.serving_parts import records_by_arm
from vllm_smart.bench.serving_records import ServingRecord
from vllm_smart.bench.workloads import Prompts
from vllm_smart.config import load_config
from vllm_smart.profiling import Correction, CostSamples, CostTable, load
from vllm_smart.simulate import EngineLimits, Load, Machine, Point, Setup, Workload, simulate
from vllm_smart.simulate.command import expansions_of

SERVING = Path("docs/results/serving")
TABLE, TRACE = SERVING / "cost-table.json", SERVING / "trace.jsonl"
FIGURES = ("tokens_per_s", *(f"{n} p{p}" for n in ("TTFT", "TPOT", "ITL") for p in (50, 90, 99)))
_LIMITS = {False: 0.10, True: 0.15}  # by whether the rate is beyond saturation
_STEP_MS = 1.0  # of a step, beyond the table
_FITS = 6  # rounds of fitting
_STOCK = "stock-chain-"


@dataclass(frozen=True)
class Row:
    """A figure: medians over rounds, and what the rounds spanned."""

    rate: float
    burstiness: float
    arm: str
    figure: str
    measured: float
    lowest: float
    highest: float
    simulated: float
    is_saturated: bool
    is_fitted: bool  # whether the machine's speed was taken from it

    @property
    def kind(self) -> str:
        """The figure without its percentile."""
        return self.figure.split()[0]

    @property
    def error(self) -> float:
        """Of the simulated figure, relative."""
        return self.simulated / self.measured - 1.0

    @property
    def is_within(self) -> bool:
        """Whether it is as near as it should be."""
        return abs(self.error) <= _LIMITS[self.is_saturated]

    @property
    def is_in_span(self) -> bool:
        """Whether some round was as far off as that."""
        return self.lowest <= self.simulated <= self.highest


def arrivals(prompts: list[int], output: int, rate: float, burstiness: float, seed: int) -> Workload:
    """As vLLM 0.32's `vllm bench serve` sends requests (benchmarks: CustomDataset, get_request).

    Args:
        prompts: tokens of each request's prompt, as its file has them; they are sent in another order.
        output: tokens that each generates.
        rate: requests per second.
        burstiness: shape of the gamma distribution of gaps.
        seed: the client's.
    """
    theta = 1.0 / (rate * burstiness)
    delay = np.cumsum(np.random.RandomState(seed).gamma(burstiness, theta, len(prompts)))
    delay *= len(prompts) / rate / delay[-1]
    sent = list(prompts)
    random.Random(seed).shuffle(sent)
    return Workload(delay * 1e3, np.array(sent), np.full(len(sent), output))


def policy_of(arm: str) -> str:
    """The simulator's name of an arm of a suite."""
    return f"chain:{arm.rsplit('-', 1)[1]}" if arm.startswith(_STOCK) else arm


class Slowness(NamedTuple):
    """What a server's steps take, beyond what a table says."""

    forward: float = 1.0  # factor of the smallest forward
    rows: float = 1.0  # factor of what further rows and context add
    drafting: float = 1.0  # milliseconds of a step that drafts, beyond its forwards


# What each of these is fitted to, at the lowest rate.
FITTED = (("plain", "ITL p50"), ("plain", "TTFT p90"), (f"{_STOCK}1", "ITL p50"))


def scaled(table: CostTable, slowness: Slowness) -> CostTable:
    """The same machine, so many times as slow."""
    samples = table.samples.model_dump()
    for name in ("verify", "draft", "read"):
        points = samples[name]
        least = points[0][1] if points else 0.0
        samples[name] = tuple(
            (size, slowness.forward * least + slowness.rows * (ms - least)) for size, ms in points
        )
    samples["context"] = tuple((*of, ms * slowness.rows) for *of, ms in samples["context"])
    return CostTable(CostSamples.model_validate(samples))


def figures(of: ServingRecord | Point) -> dict[str, float]:
    """By the names of `FIGURES`."""
    found = {"tokens_per_s": of.tokens_per_s}
    for name, values in (("TTFT", of.ttft_ms), ("TPOT", of.tpot_ms), ("ITL", of.itl_ms)):
        found |= {f"{name} p{p}": getattr(values, f"p{p}") for p in (50, 90, 99)}
    return found


class Check:
    """One suite, simulated."""

    def __init__(self, results: Results, table: CostTable, acceptance: str) -> None:
        suite = results.suite
        (self._drafter,), serving = suite.drafters, suite.serving
        assert serving is not None, "the suite has a serving part"
        assert {arm for arm, _ in FITTED} <= set(serving.arms), f"the suite serves the arms of {FITTED}"
        self._results, self._table, self._serving = results, table, serving
        self._expansions = expansions_of(acceptance, suite.seed)
        prompts = Prompts(suite.workloads[0], suite.seed, tokenizer_of(suite))
        # Lengths, by round.
        self._prompts = [
            list(map(len, prompts.choose(serving.num_prompts, repeat)))
            for repeat in range(serving.repeats)
        ]

    def points(self, at: tuple[float, float], arms: list[str], slowness: Slowness) -> list[list[Point]]:
        """By round, of each arm, at a rate and a burstiness."""
        suite, serving = self._results.suite, self._serving
        engine = suite.engine
        limits = EngineLimits(
            engine.max_num_seqs, engine.max_num_batched_tokens, engine.max_model_len, block_size=16
        )
        shared = suite.smart.model_dump()
        tree = shared.get("tree", {}) | {"node_budget": shared.pop("node_budget")}
        config = load_config({**shared, "tree": tree}).resolve_node_budget(None).resolve_shape(None)
        overheads = Correction(step_ms=_STEP_MS, drafting_ms=slowness.drafting)
        machine = Machine(scaled(self._table, slowness), overheads)
        rate, burstiness = at
        found = []
        for repeat, prompts in enumerate(self._prompts):
            seed, output = suite.seed + repeat, serving.output_tokens
            # What was served before has taught the engine something.
            warm_up = arrivals((prompts * 3)[: serving.num_warmups * 3], output, 1.0, 1.0, suite.seed)
            work = arrivals(prompts, output, rate, burstiness, seed)
            setup = Setup(config, machine, self._expansions, limits, seed=seed)
            later = replace(setup, machine=replace(machine, tokens_first=False))
            points = []
            for arm in arms:
                # On CPUs vLLM sends a step's tokens when it has drafted.
                of_arm = later if arm.startswith(_STOCK) else setup
                named = Load(f"{rate:g}/s", rate, work, warm_up)
                points += simulate(of_arm, [policy_of(arm)], [named])
            found.append(points)
        return found

    def slowness(self) -> Slowness:
        """With which the simulated figures `FITTED` are what was measured."""
        lowest, found = self._serving.loads[0], Slowness()
        arms = list(dict.fromkeys(arm for arm, _ in FITTED))
        measured = [
            median(figures(record)[name] for record in self._of(arm, lowest)) for arm, name in FITTED
        ]
        for _ in range(_FITS):
            by_round = self.points(lowest, arms, found)
            simulated = [
                median(figures(points[arms.index(arm)])[name] for points in by_round)
                for arm, name in FITTED
            ]
            found = Slowness(
                found.forward * measured[0] / simulated[0],
                found.rows * measured[1] / simulated[1],
                max(found.drafting + measured[2] - simulated[2], 0.0),
            )
        return found

    def rows(self, slowness: Slowness) -> Iterator[Row]:
        """Every figure of every arm and load."""
        table, engine = scaled(self._table, slowness), self._results.suite.engine
        seats, output = engine.max_num_seqs, self._serving.output_tokens
        # A request takes a seat's share of its decoding steps, and its prompt.
        prompts = chain.from_iterable(self._prompts)
        ms = output * table.verify_ms(seats) / seats + mean(map(table.verify_ms, prompts))
        for at in self._serving.loads:
            arms = list(self._serving.arms)
            simulated = self.points(at, arms, slowness)
            by_round = [list(map(figures, points)) for points in simulated]
            for index, arm in enumerate(arms):
                measured = [figures(record) for record in self._of(arm, at)]
                for name in FIGURES:
                    values = [each[name] for each in measured]
                    yield Row(
                        *at,
                        arm,
                        name,
                        median(values),
                        min(values),
                        max(values),
                        median(points[index][name] for points in by_round),
                        is_saturated=at[0] * ms > 1e3,
                        is_fitted=at == self._serving.loads[0] and (arm, name) in FITTED,
                    )

    def _of(self, arm: str, at: tuple[float, float]) -> list[ServingRecord]:
        return list(records_by_arm(self._results, self._drafter, *at)[arm].values())


def report(rows: list[Row], slowness: Slowness, about: str) -> Iterator[str]:
    """Markdown."""
    tested = [row for row in rows if not row.is_fitted]
    yield "# The simulator against a measured server\n"
    yield (
        f"{about} Three numbers are fitted: the table's smallest forward x {slowness.forward:.3f}, "
        f"what rows add x {slowness.rows:.3f}, {slowness.drafting:.1f} ms of a step that drafts.\n"
    )
    for is_saturated, where in ((False, "below saturation"), (True, "beyond it")):
        of = [row for row in tested if row.is_saturated is is_saturated]
        if of:
            yield (
                f"- {where}: {sum(row.is_within for row in of)} of {len(of)} figures within "
                f"{_LIMITS[is_saturated]:.0%}; median error "
                f"{median(abs(row.error) for row in of):.1%}; "
                f"{sum(row.is_in_span for row in of)} within what the rounds spanned."
            )
    for kind in dict.fromkeys(row.kind for row in tested):
        by_arm = []
        for arm in dict.fromkeys(row.arm for row in tested):
            within = [row.is_within for row in tested if (row.kind, row.arm) == (kind, arm)]
            by_arm.append(f"{arm} {sum(within)} of {len(within)}")
        yield f"- {kind}: {', '.join(by_arm)}."
    for rate, burstiness in dict.fromkeys((row.rate, row.burstiness) for row in rows):
        of_load = [row for row in rows if (row.rate, row.burstiness) == (rate, burstiness)]
        beyond = ", beyond saturation" if of_load[0].is_saturated else ""
        yield f"\n## {load_in_words(rate, burstiness)}{beyond}\n"
        yield "| arm | figure | measured | rounds | simulated | error | |"
        yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
        for row in of_load:
            verdict = "fitted" if row.is_fitted else "" if row.is_within else "off"
            yield (
                f"| {row.arm} | {row.figure} | {row.measured:.1f} "
                f"| {row.lowest:.1f} to {row.highest:.1f} | {row.simulated:.1f} "
                f"| {row.error:+.0%} | {verdict} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=SERVING)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--acceptance", default=str(TRACE), help="as of `vllm-smart simulate`")
    parser.add_argument("--out", type=Path, default=Path("docs/results/simulator"))
    args = parser.parse_args()
    check = Check(load_results(args.results / "results.json"), load(args.table), args.acceptance)
    slowness = check.slowness()
    rows = list(check.rows(slowness))
    about = f"Measured: {args.results}. Table: {args.table}. Acceptance: {args.acceptance}."
    args.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(report(rows, slowness, about)) + "\n"
    (args.out / "report.md").write_text(text, encoding="utf-8")
    content = {
        "slowness": slowness._asdict(),
        "acceptance": args.acceptance,
        "rows": [vars(row) for row in rows],
    }
    (args.out / "comparison.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(text.partition("\n## ")[0])
    print(args.out / "report.md")


if __name__ == "__main__":
    main()
