"""What drafting beside the target has saved, and the most that it could: by a run of an overlap suite.

    python -m benchmarks.overlap_bound docs/results/overlap/results.json

Of each load: how long drafting holds a step up, of what an inline drafter on the same core does; how
often what was needed had been drafted, and how often that was foreseen; and how much faster the inline
one would be if its drafting took no time, which is what a drafter that always hits would gain. How fast
both are is in the suite's report.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

INLINE, BESIDE = "smart-one-core", "beside"
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


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| text | batch | drafting holds up, of inline | hits | foreseen, of the same | "
        "drafting for free, of inline |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['workload']} | {row['batch_size']} | {row['held_up']:.2f} | {row['hits']:.2f} | "
            f"{row['foreseen']:.2f} of {row['judged_hits']:.2f} | {row['bound']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of the suite")
    args = parser.parse_args()
    print(table(judge(json.loads(args.results.read_text())["records"])))


if __name__ == "__main__":
    main()
