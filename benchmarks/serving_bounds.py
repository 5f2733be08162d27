"""Whether servers keep within what was promised: by a run of `serving.yaml`.

    python -m benchmarks.serving_bounds docs/results/serving/results.json [--arm smart]

By load, an arm over plain decoding, with the intervals of the suite's report, and its tokens per second
over those of the best chain of one length, which is the suite's fastest over all loads. Then, how many
times to the first token and per token are at most 1.03 of plain's, by the figure and by where its
interval begins, and their geometric means.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vllm_smart.bench.records import load_results
from vllm_smart.bench.serving_config import load_in_words
from vllm_smart.bench.serving_parts import SPEED, ratios, records_by_arm
from vllm_smart.bench.statistics import Estimate, geometric_mean
from vllm_smart.bench.tables import with_interval

_BOUND = 1.03  # of plain's times
_CHAIN = "stock-chain-"


def counted(name: str, found: Sequence[Estimate]) -> str:
    """How many of these are within the bound, in one line."""
    within = sum(of.value <= _BOUND for of in found)
    begin = sum(of.low <= _BOUND for of in found)
    mean = geometric_mean(found).value
    return f"- {name}: {within} of {len(found)} within {_BOUND}, {begin} begin there; mean {mean:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of the suite")
    parser.add_argument("--arm", default="smart", help="as the suite names it")
    args = parser.parse_args()
    results = load_results(args.results)
    (drafter,), serving = results.suite.drafters, results.suite.serving
    assert serving is not None, "the suite has a serving part"
    plain = results.suite.plain_arm.label
    loads = {of: records_by_arm(results, drafter, *of) for of in serving.loads}

    def speed(arm: str, over: str) -> list[Estimate]:
        found = (ratios(by_arm[arm], by_arm[over])[SPEED] for by_arm in loads.values())
        return [of for of in found if of is not None]

    chains = [arm for arm in serving.arms if arm.startswith(_CHAIN)]
    best = max(chains, key=lambda arm: geometric_mean(speed(arm, plain)).value)
    over_best = speed(args.arm, best)
    columns: dict[str, list[Estimate]] = {}
    rows = []
    for of, over_chain in zip(loads.items(), over_best, strict=True):
        load, by_arm = of
        found = {name: r for name, r in ratios(by_arm[args.arm], by_arm[plain]).items() if r}
        for name, ratio in found.items():
            columns.setdefault(name, []).append(ratio)
        cells = [*map(with_interval, found.values()), with_interval(over_chain)]
        rows.append(f"| {load_in_words(*load)} | {' | '.join(cells)} |")
    heads = "load", *columns, f"{SPEED} over {best}"
    print(f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), *rows, "", sep="\n")
    print(*(counted(name, found) for name, found in columns.items() if name != SPEED), sep="\n")


if __name__ == "__main__":
    main()
