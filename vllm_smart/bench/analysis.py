"""Compares the arms under one drafter and workload. Knows statistics, not how they are shown."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from vllm_smart.bench.arms import SmartArm, is_fixed_chain, is_ours, is_stock_chain
from vllm_smart.bench.disturbance import undisturbed
from vllm_smart.bench.records import Results, Run
from vllm_smart.bench.statistics import Estimate, geometric_mean, median_ratio

Metric = Callable[[Run], float]


def decode_speed(run: Run) -> float:
    """The headline: tokens per second while all requests of the batch decode."""
    return run.full_batch_tokens_per_s


def total_speed(run: Run) -> float:
    """Tokens per second from submission to the last token, prompts included."""
    return run.tokens_per_s


@dataclass(frozen=True)
class BestChain:
    """The fixed chain that turned out fastest at one batch size."""

    label: str
    speedup: Estimate  # over plain decoding


@dataclass(frozen=True)
class Loss:
    """A batch size at which another arm's median was faster than ours."""

    arm: str
    batch_size: int
    other: str
    ratio: Estimate  # ours / the other's, below 1

    @property
    def is_certain(self) -> bool:
        """Whether the 90% interval excludes a tie."""
        return self.ratio.high < 1.0


class Comparison:
    """Everything that is computed from the records of one drafter and workload."""

    def __init__(self, results: Results, drafter: str, workload: str) -> None:
        suite = results.suite
        self.drafter, self.workload = drafter, workload
        self.plain = suite.plain_arm.label
        self.labels = [arm.label for arm in suite.arms]
        self.chains = [arm.label for arm in suite.arms if is_fixed_chain(arm)]
        self.ours = [arm.label for arm in suite.arms if is_ours(arm)]
        # What each arm lacks, by its label.
        self.ablations = {
            arm.label: arm.ablation for arm in suite.arms if isinstance(arm, SmartArm) and arm.ablation
        }
        self.differences = [
            d for d in results.differences if d.drafter == drafter and d.workload == workload
        ]
        self._seed = suite.seed
        # By arm and batch size: runs by round (`repeat`) and side-by-side run (`heat`).
        self._runs: dict[tuple[str, int], dict[tuple[int, int], Run]] = {}
        for record in undisturbed(results)[0]:
            if record.drafter == drafter and record.workload == workload:
                runs = self._runs.setdefault((record.arm, record.batch_size), {})
                runs[record.repeat, record.heat] = record.run
        self.batch_sizes = sorted({size for _, size in self._runs})

    def ratio(
        self, arm: str, other: str, batch_size: int, metric: Metric = decode_speed
    ) -> Estimate | None:
        """`arm` / `other` over the rounds in which both were measured; None if there are none.

        Within the side-by-side runs of a round that they shared, where both saw the same machine at the
        same time; without any, each is taken over plain decoding, with which every arm shares some.
        """
        ours, theirs = (self._by_round(label, self.plain, batch_size, metric) for label in (arm, other))
        by_round = {i: ours[i] / theirs[i] for i in ours.keys() & theirs.keys()}
        by_round |= self._by_round(arm, other, batch_size, metric)
        if not by_round:
            return None
        # Draws that do not depend on which other ratios were asked for; independent by batch size.
        rng = np.random.default_rng([self._seed, batch_size])
        return median_ratio([by_round[i] for i in sorted(by_round)], rng)

    def _by_round(self, arm: str, other: str, batch_size: int, metric: Metric) -> dict[int, float]:
        """Geometric mean of `arm` / `other` over the side-by-side runs of each round that had both."""
        ours, theirs = (self._runs.get((label, batch_size), {}) for label in (arm, other))
        logs: dict[int, list[float]] = {}
        for repeat, heat in ours.keys() & theirs.keys():
            ratio = metric(ours[repeat, heat]) / metric(theirs[repeat, heat])
            if math.isfinite(ratio) and ratio > 0.0:
                logs.setdefault(repeat, []).append(math.log(ratio))
        return {repeat: math.exp(fmean(of_heats)) for repeat, of_heats in logs.items()}

    def mean_ratio(self, arm: str, other: str, metric: Metric = decode_speed) -> Estimate | None:
        """Geometric mean of `ratio` over batch sizes; None unless all of them are known."""
        return _mean([self.ratio(arm, other, size, metric) for size in self.batch_sizes])

    def best_chain(self, batch_size: int, metric: Metric = decode_speed) -> BestChain | None:
        """The fixed chain with the highest median, chosen after the fact."""
        candidates = []
        for label in self.chains:
            speedup = self.ratio(label, self.plain, batch_size, metric)
            if speedup is not None:
                candidates.append(BestChain(label, speedup))
        return max(candidates, key=lambda chain: chain.speedup.value, default=None)

    def over_best_chain(
        self, arm: str, batch_size: int, metric: Metric = decode_speed
    ) -> Estimate | None:
        """`arm` / the best fixed chain by hindsight."""
        best = self.best_chain(batch_size, metric)
        return None if best is None else self.ratio(arm, best.label, batch_size, metric)

    def mean_over_best_chain(self, arm: str, metric: Metric = decode_speed) -> Estimate | None:
        """Geometric mean of `over_best_chain`."""
        return _mean([self.over_best_chain(arm, size, metric) for size in self.batch_sizes])

    def best_single_chain(self, metric: Metric = decode_speed) -> BestChain | None:
        """The one chain with the highest geometric mean: a K that is tuned once for all loads."""
        candidates = []
        for label in self.chains:
            speedup = self.mean_ratio(label, self.plain, metric)
            if speedup is not None:
                candidates.append(BestChain(label, speedup))
        return max(candidates, key=lambda chain: chain.speedup.value, default=None)

    def losses(self) -> list[Loss]:
        """Where our policy is slower than another arm, worst first."""
        found = []
        for arm in self.ours:
            for size in self.batch_sizes:
                for other in self.labels:
                    ratio = None if other in self.ours else self.ratio(arm, other, size)
                    if ratio is not None and ratio.value < 1.0:
                        found.append(Loss(arm, size, other, ratio))
        return sorted(found, key=lambda loss: loss.ratio.value)

    def runs(self, arm: str, batch_size: int) -> list[Run]:
        """All measured runs, by round and side-by-side run."""
        found = self._runs.get((arm, batch_size), {})
        return [found[heat] for heat in sorted(found)]

    def median_of(self, arm: str, batch_size: int, metric: Metric) -> float:
        """Median of a quantity over repeats; NaN where it was not measured."""
        values = [metric(run) for run in self.runs(arm, batch_size)]
        values = [value for value in values if math.isfinite(value)]
        return median(values) if values else math.nan

    def num_requests(self, arm: str) -> int:
        """Requests of all measured runs of `arm`."""
        return sum(len(run.token_ids) for size in self.batch_sizes for run in self.runs(arm, size))


def best_schedule(results: Results, drafter: str, workload: str) -> dict[int, int]:
    """K of the fastest stock chain by batch size, 0 where plain decoding is faster."""
    comparison = Comparison(results, drafter, workload)
    k_of = {comparison.plain: 0}
    k_of |= {arm.label: arm.k for arm in results.suite.arms if is_stock_chain(arm)}
    schedule = {}
    for size in comparison.batch_sizes:
        ratios = {label: comparison.ratio(label, comparison.plain, size) for label in k_of}
        speedup = {label: ratio.value for label, ratio in ratios.items() if ratio is not None}
        if speedup:
            schedule[size] = k_of[max(speedup, key=speedup.__getitem__)]
    return schedule


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    """Index of the first token that differs, None if there is none."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def _mean(ratios: list[Estimate | None]) -> Estimate | None:
    known = [ratio for ratio in ratios if ratio is not None]
    return geometric_mean(known) if known and len(known) == len(ratios) else None
