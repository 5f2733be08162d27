"""What drafting beside the target has saved, and the most that it could: by a run of an overlap suite.

    python -m benchmarks.overlap_bound docs/results/overlap/results.json

Of each load: how fast the drafter beside the target is, over an inline one on the same core, with the
interval of the suite's report; how long drafting holds a step up, of what an inline drafter on the same
core does; how often what was needed had been drafted, and how often that was foreseen; how much faster
the inline one would be if its drafting took no time, which is what a drafter that always hits would
gain; and how fast plain decoding is with a drafter parked beside it, over the same without.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from vllm_smart.bench.analysis import Comparison
from vllm_smart.bench.records import Results, load_results
from vllm_smart.bench.tables import with_interval

INLINE, BESIDE = "smart-one-core", "beside"
PLAIN, PARKED = "plain-one-core", "beside-parked"
_Runs = list[dict[str, Any]]


def judge(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row of numbers for each text and batch size, over all rounds."""
    loads: dict[tuple[str, int], dict[str, _Runs]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        loads[record["workload"], record["batch_size"]][record["arm"]].append(record["run"])
    rows = []
    for (workload, batch_size), arms in loads.items():
        inline, beside = arms[INLINE], arms[BESIDE]
        hits, misses, foreseen, judged = (
            sum(run["counters"][f"overlap_{name}"] for run in beside)
            for name in ("hits", "misses", "foreseen_hits", "judged_lookups")
        )
        judged_hits = sum(run["counters"]["overlap_judged_hits"] for run in beside)
        rows.append(
            {
                "workload": workload,
                "batch_size": batch_size,
                "held_up": _held_up(beside) / _held_up(inline),
                "hits": hits / max(hits + misses, 1),
                "foreseen": foreseen / max(judged, 1),
                "judged_hits": judged_hits / max(judged, 1),
                "bound": 1.0 / (1.0 - _drafting_share(inline)),
            }
        )
    return rows


def _decoding(run: dict[str, Any]) -> slice:
    """Steps from the first of which every request has its first token until the first request ends."""
    begin, end = max(run["first_token_s"]), min(run["finish_s"])
    steps = [step for step, time in enumerate(run["step_end_s"]) if begin < time <= end]
    return slice(steps[0], steps[-1] + 1)


def _held_up(runs: _Runs) -> float:
    """Median seconds of a step's drafting."""
    return median(seconds for run in runs for seconds in run["step_draft_s"][_decoding(run)])


def _drafting_share(runs: _Runs) -> float:
    """Of the time of all steps."""
    drafting = sum(sum(run["step_draft_s"][_decoding(run)]) for run in runs)
    return drafting / sum(min(run["finish_s"]) - max(run["first_token_s"]) for run in runs)


def table(rows: list[dict[str, Any]], results: Results) -> str:
    """Markdown."""
    lines = [
        "| text | batch | beside, of inline | drafting holds up, of inline | hits | "
        "foreseen, of the same | drafting for free, of inline | parked, of plain |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    (drafter,) = results.suite.drafters
    for row in rows:
        compared = Comparison(results, drafter, row["workload"])
        ratio, parked = (
            with_interval(compared.ratio(*arms, row["batch_size"]))
            for arms in ((BESIDE, INLINE), (PARKED, PLAIN))
        )
        lines.append(
            f"| {row['workload']} | {row['batch_size']} | {ratio} | {row['held_up']:.2f} | "
            f"{row['hits']:.2f} | "
            f"{row['foreseen']:.2f} of {row['judged_hits']:.2f} | {row['bound']:.3f} | "
            f"{parked} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of the suite")
    args = parser.parse_args()
    records = json.loads(args.results.read_text())["records"]
    print(table(judge(records), load_results(args.results)))


if __name__ == "__main__":
    main()
