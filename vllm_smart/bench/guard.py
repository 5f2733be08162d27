"""The regression guard: ratios inside one run against those of a stored one, never absolute times."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_smart.bench.analysis import Comparison
from vllm_smart.bench.arms import SmartArm
from vllm_smart.bench.records import Results
from vllm_smart.bench.suite import Suite
from vllm_smart.errors import ConfigError, SmartError

TOLERANCE = 0.1  # a smaller loss is not worth an alarm, however certain


class RegressionError(SmartError):
    """An arm has become slower, compared with plain decoding of the same run."""


class Ratio(BaseModel):
    """Speedup over plain decoding and its 90% interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float


class Baseline(BaseModel):
    """What is stored of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str  # digest
    cpu: str
    git_commit: str | None
    ratios: dict[str, Ratio]  # by "DRAFTER WORKLOAD batch SIZE ARM"


@dataclass(frozen=True)
class Change:
    """One arm at one load, then and now."""

    name: str
    stored: Ratio
    now: Ratio

    @property
    def relative(self) -> float:
        """How much faster it has become; negative: slower."""
        return self.now.value / self.stored.value - 1

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if abs(self.relative) <= TOLERANCE:
            return "ok"
        if self.relative < 0:
            return "SLOWER" if self.now.high < self.stored.low else "slower, or noise"
        return "faster" if self.now.low > self.stored.high else "faster, or noise"


def suite_digest(suite: Suite) -> str:
    """12 hexadecimal digits that stand for all settings of a suite."""
    return hashlib.sha256(suite.model_dump_json().encode()).hexdigest()[:12]


def baseline_of(results: Results) -> Baseline:
    """What to store of a run: the arms of our plugin, ablations left out.

    Raises:
        ConfigError: it is incomplete, or has too few rounds for intervals.
    """
    if results.missing:
        raise ConfigError(f"the run is incomplete: {results.missing}. Run the suite to its end.")
    ratios = {}
    for drafter in results.suite.drafters:
        for workload in results.suite.workloads:
            comparison = Comparison(results, drafter, workload.label)
            for arm in results.suite.arms:
                if not isinstance(arm, SmartArm) or arm.ablation is not None:
                    continue
                for size in comparison.batch_sizes:
                    found = comparison.ratio(arm.label, comparison.plain, size)
                    if found is not None:
                        name = f"{drafter} {workload.label} batch {size} {arm.label}"
                        ratios[name] = Ratio(value=found.value, low=found.low, high=found.high)
    if any(math.isnan(ratio.low) for ratio in ratios.values()):
        raise ConfigError(
            f"repeats={results.suite.repeats}: one round has no interval. Raise it to 3 or more."
        )
    return Baseline(
        suite=suite_digest(results.suite),
        cpu=str(results.environment["cpu"]),
        git_commit=results.environment["git_commit"],
        ratios=ratios,
    )


def load_baseline(path: Path, suite: Suite) -> Baseline:
    """Read what was stored of the same suite.

    Raises:
        ConfigError: it cannot be read, or was stored of another suite.
    """
    again = f"Make it anew with --store {path}, on a commit that is known to be good."
    try:
        stored = Baseline.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). {again}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: is no stored result of a benchmark. {again}") from error
    if stored.suite != suite_digest(suite):
        raise ConfigError(
            f"{path}: was stored of another suite (digest {stored.suite}, this one has "
            f"{suite_digest(suite)}); --quick and --dtype count, too. {again}"
        )
    return stored


def changes(stored: Baseline, now: Baseline) -> list[Change]:
    """All arms and loads, then and now."""
    return [Change(name, ratio, now.ratios[name]) for name, ratio in stored.ratios.items()]


def change_lines(stored: Baseline, now: Baseline) -> Iterator[str]:
    """A table for people."""
    found = changes(stored, now)
    width = max(len(change.name) for change in found)
    yield f"{'speedup over plain':{width}}  {'stored':>22} {'now':>22} {'change':>7}  verdict"
    for change in found:
        yield (
            f"{change.name:{width}}  {_interval(change.stored):>22} {_interval(change.now):>22} "
            f"{change.relative:+7.1%}  {change.verdict}"
        )
    if stored.cpu != now.cpu:
        yield f"note: stored on another machine ({stored.cpu}); this one is {now.cpu}."


def check_regressions(stored: Baseline, now: Baseline) -> None:
    """Compare.

    Raises:
        RegressionError: naming the arms that are certainly slower, by more than `TOLERANCE`.
    """
    slower = [change.name for change in changes(stored, now) if change.verdict == "SLOWER"]
    if slower:
        raise RegressionError(
            f"slower than stored by more than {TOLERANCE:.0%}, intervals apart: {'; '.join(slower)}."
        )


def _interval(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
