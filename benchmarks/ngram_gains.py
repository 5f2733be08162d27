"""What n-grams gain, alone and beside a drafter: by runs of a suite that has these arms.

    python -m benchmarks.ngram_gains docs/results/ngram/results.json
    python -m benchmarks.ngram_gains docs/results/ngrams-alone/*.json

Of each text and batch size, decoding speed with the intervals of the suite's report: n-grams alone over
plain decoding and over vLLM's n-grams at their better length, and both in one tree over the drafter
alone and over n-grams alone. Then come the geometric means, how many levels a step that drafted drew,
and how many steps drafted not at all. Of several runs of a suite, geometric means over them, and as
intervals what they span: processes of one kind differ in speed, and each run has its own.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_smart.bench.analysis import Comparison
from vllm_smart.bench.arms import StockChainArm
from vllm_smart.bench.records import Record, Results, load_results
from vllm_smart.bench.statistics import Estimate, geometric_mean
from vllm_smart.bench.tables import UNKNOWN, with_interval

ALONE, DRAFTER, BOTH = "smart-ngram", "smart", "smart-mixed"
REPEATING = ("code-long", "edit", "edit-long", "retrieval")  # where the text repeats the prompt


@dataclass(frozen=True)
class Gain:
    """One text at one batch size; None is not known."""

    workload: str
    batch_size: int
    of_plain: Estimate | None
    of_stock: Estimate | None
    both_of_drafter: Estimate | None
    both_of_alone: Estimate | None

    @property
    def ratios(self) -> tuple[Estimate | None, ...]:
        """All four, in this order."""
        return self.of_plain, self.of_stock, self.both_of_drafter, self.both_of_alone


def gains(results: Results) -> list[Gain]:
    """By text and batch size."""
    (drafter,) = results.suite.drafters
    stock = [
        arm.label
        for arm in results.suite.arms
        if isinstance(arm, StockChainArm) and arm.method == "ngram"
    ]
    found = []
    for workload in results.suite.workloads:
        compared = Comparison(results, drafter, workload.label)
        for size in compared.batch_sizes:
            over = [compared.ratio(ALONE, label, size) for label in stock]
            found.append(
                Gain(
                    workload.label,
                    size,
                    compared.ratio(ALONE, compared.plain, size),
                    # Over the faster one, chosen by the same runs.
                    min((ratio for ratio in over if ratio), key=lambda of: of.value, default=None),
                    compared.ratio(BOTH, DRAFTER, size),
                    compared.ratio(BOTH, ALONE, size),
                )
            )
    return found


def over_runs(runs: Sequence[Sequence[Gain]]) -> list[Gain]:
    """Geometric means over runs of one suite; what the runs say are the draws."""
    found = []
    for cells in zip(*runs, strict=True):
        ratios = (_over_runs(of) for of in zip(*(cell.ratios for cell in cells), strict=True))
        found.append(Gain(cells[0].workload, cells[0].batch_size, *ratios))
    return found


def _over_runs(ratios: Sequence[Estimate | None]) -> Estimate | None:
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return None
    return Estimate(geometric_mean(known).value, np.array([ratio.value for ratio in known]))


def table(found: Sequence[Gain]) -> str:
    """Markdown."""
    lines = [
        "| text | batch | n-grams, of plain | of vLLM's best n-grams | both, of the drafter | "
        "both, of n-grams |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    columns = [of.ratios for of in found]
    for of, cells in zip(found, columns, strict=True):
        lines.append(f"| {of.workload} | {of.batch_size} | {' | '.join(map(with_interval, cells))} |")
    repeating = [cells for of, cells in zip(found, columns, strict=True) if of.workload in REPEATING]
    for name, rows in (("all", columns), (", ".join(REPEATING), repeating)):
        known = [[cell for cell in of if cell] for of in zip(*rows, strict=True)]
        means = (geometric_mean(of) if of else None for of in known)
        lines.append(f"| geometric mean of {name} | | {' | '.join(map(with_interval, means))} |")
    return "\n".join(lines)


def drafting(results: Results) -> str:
    """Markdown: what the drafter did, alone and beside n-grams; sums over runs."""
    lines = ["| text | batch | arm | levels a drafting step | steps without drafting |"]
    lines.append("| --- | ---: | --- | ---: | ---: |")
    runs: dict[tuple[str, int, str], list[Record]] = {}
    for record in results.records:
        if record.arm in (DRAFTER, BOTH):
            runs.setdefault((record.workload, record.batch_size, record.arm), []).append(record)
    for (workload, size, arm), records in runs.items():
        steps, resting, levels = (
            sum(record.run.count(name) for record in records)
            for name in ("steps", "steps_without_drafting", "draft_levels")
        )
        each = f"{levels / (steps - resting):.2f}" if steps > resting else UNKNOWN
        lines.append(f"| {workload} | {size} | {arm} | {each} | {resting / steps:.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results.json of one run, or several")
    runs = [load_results(path) for path in parser.parse_args().results]
    if len(runs) == 1:
        print(table(gains(runs[0])), drafting(runs[0]), sep="\n\n")
    else:
        print(table(over_runs([gains(results) for results in runs])))


if __name__ == "__main__":
    main()
