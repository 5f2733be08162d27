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

from vllm_smart.bench.arms import is_fixed_chain
from vllm_smart.bench.records import load_results
from vllm_smart.bench.serving_config import load_in_words
from vllm_smart.bench.serving_parts import SPEED, ratios, records_by_arm, speed_ratio
from vllm_smart.bench.statistics import Estimate, geometric_mean
from vllm_smart.bench.tables import with_interval

_BOUND = 1.03  # of plain's times


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
    loads = [records_by_arm(results, drafter, *of) for of in serving.loads]

    def mean_speed(arm: str) -> float:
        found = (speed_ratio(by_arm[arm], by_arm[plain]) for by_arm in loads)
        return geometric_mean([ratio for ratio in found if ratio is not None]).value

    chains = [arm.label for arm in results.suite.arms if is_fixed_chain(arm)]
    best = max((arm for arm in chains if arm in serving.arms), key=mean_speed)
    over_plain = [ratios(by_arm[args.arm], by_arm[plain]) for by_arm in loads]
    heads = "load", *over_plain[0], f"{SPEED} over {best}"
    print(f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), sep="\n")
    for of, found, by_arm in zip(serving.loads, over_plain, loads, strict=True):
        cells = map(with_interval, (*found.values(), speed_ratio(by_arm[args.arm], by_arm[best])))
        print(f"| {load_in_words(*of)} | {' | '.join(cells)} |")
    print()
    for name in over_plain[0]:
        if name != SPEED:
            print(counted(name, [ratio for found in over_plain if (ratio := found[name])]))


if __name__ == "__main__":
    main()
