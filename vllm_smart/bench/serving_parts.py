"""Online serving in the report."""

from collections.abc import Callable, Iterator
from itertools import product
from statistics import median

import numpy as np

from vllm_smart.bench.document import Heading, Paragraph, Part, Table
from vllm_smart.bench.records import Results
from vllm_smart.bench.serving_config import load_in_words
from vllm_smart.bench.serving_records import PERCENTILES, Latencies, ServingRecord
from vllm_smart.bench.statistics import Estimate, median_ratio, percentile_ratio
from vllm_smart.bench.tables import UNKNOWN, with_interval

Rounds = dict[int, ServingRecord]  # of one arm under one load
_ByArm = dict[str, Rounds]


def serving_parts(results: Results) -> Iterator[Part]:
    """A table per drafter and rate; medians over rounds."""
    serving = results.suite.serving
    if serving is None:
        return
    yield Heading("Online serving", 2)
    yield Paragraph(
        f"A `vllm serve` per arm, all alive and asked by turns: {serving.num_prompts} requests of "
        f"{serving.output_tokens} tokens at each rate, sent by `vllm bench serve` as a Poisson "
        f"process, or in bursts; {serving.num_warmups} discarded requests before each rate. "
        f"Milliseconds: median / 90th / 99th percentile; medians over {serving.repeats} round(s). "
        "Over plain, with 90% intervals: tokens per second (above 1 is faster) are the median of the "
        "rounds' ratios; times (below 1 is faster) are ratios of percentiles over the requests of all "
        "rounds, which are the same for all arms, and their intervals come from drawing requests."
    )
    for drafter in results.suite.drafters:
        for rate, burstiness in serving.loads:
            yield Heading(f"{drafter}, {load_in_words(rate, burstiness)}", 3)
            by_arm = records_by_arm(results, drafter, rate, burstiness)
            yield _times(serving.arms, by_arm)
            yield _over_plain(serving.arms, by_arm, results.suite.plain_arm.label)
    planned = len(results.suite.drafters) * serving.repeats * len(serving.loads) * len(serving.arms)
    if len(results.serving) < planned:
        yield Paragraph(f"INCOMPLETE: {len(results.serving)} of {planned} serving runs were made.")


def records_by_arm(results: Results, drafter: str, rate: float, burstiness: float) -> dict[str, Rounds]:
    """What was recorded of a drafter under a load."""
    by_arm: _ByArm = {}
    for record in results.serving:
        if (record.drafter, record.rate, record.burstiness) == (drafter, rate, burstiness):
            by_arm.setdefault(record.arm, {})[record.repeat] = record
    return by_arm


def _times(arms: list[str], by_arm: _ByArm) -> Table:
    rows = []
    for arm in arms:
        records = list(by_arm.get(arm, {}).values())
        if not records:
            rows.append([arm, *[UNKNOWN] * 4])
            continue
        rows.append(
            [
                arm,
                f"{median(record.tokens_per_s for record in records):.1f}",
                _percentiles(records, lambda record: record.ttft_ms),
                _percentiles(records, lambda record: record.tpot_ms),
                _percentiles(records, lambda record: record.itl_ms),
            ]
        )
    return Table(["arm", "tokens/s", "TTFT ms", "TPOT ms", "ITL ms"], rows)


# Of a record: percentiles, and the times of its requests that they are of.
_TIMES: dict[str, Callable[[ServingRecord], tuple[Latencies, tuple[float, ...]]]] = {
    "TTFT": lambda record: (record.ttft_ms, record.first_token_ms),
    "TPOT": lambda record: (record.tpot_ms, record.per_token_ms),
}
SPEED = "tokens/s"
_COLUMNS = {f"{name} p{percent}": (name, percent) for name, percent in product(_TIMES, PERCENTILES)}


def ratios(ours: Rounds, theirs: Rounds) -> dict[str, Estimate | None]:
    """Of the rounds that both have: `SPEED`, then percentiles of times, as in `TTFT p50`."""
    rounds = _of_both(ours, theirs)
    times = {column: _times_ratio(rounds, *of) for column, of in _COLUMNS.items()}
    return {SPEED: speed_ratio(ours, theirs)} | times


def speed_ratio(ours: Rounds, theirs: Rounds) -> Estimate | None:
    """Of tokens per second."""
    return _ratio([a.tokens_per_s / b.tokens_per_s for a, b in _of_both(ours, theirs)])


def _of_both(ours: Rounds, theirs: Rounds) -> list[tuple[ServingRecord, ServingRecord]]:
    return [(ours[repeat], theirs[repeat]) for repeat in sorted(ours.keys() & theirs.keys())]


def _over_plain(arms: list[str], by_arm: _ByArm, plain: str) -> Table:
    rows = []
    for arm in arms:
        if arm != plain:
            found = ratios(by_arm.get(arm, {}), by_arm.get(plain, {}))
            rows.append([arm, *map(with_interval, found.values())])
    return Table(["over plain", SPEED, *_COLUMNS], rows)


def _times_ratio(
    rounds: list[tuple[ServingRecord, ServingRecord]], name: str, percent: int
) -> Estimate | None:
    """Of a percentile of one of `_TIMES`."""
    found = [[_TIMES[name](record) for record in pair] for pair in rounds]
    ours, theirs = ([t for pair in found for t in pair[side][1]] for side in (0, 1))
    if not ours:  # records of earlier versions
        return _ratio(
            [getattr(a, f"p{percent}") / getattr(b, f"p{percent}") for (a, _), (b, _) in found]
        )
    return percentile_ratio(ours, theirs, percent, np.random.default_rng(0))


def _percentiles(records: list[ServingRecord], of: Callable[[ServingRecord], Latencies]) -> str:
    found = [of(record) for record in records]
    medians = [median(values) for values in zip(*((f.p50, f.p90, f.p99) for f in found), strict=True)]
    return " / ".join(f"{value:.1f}" for value in medians)


def _ratio(of_rounds: list[float]) -> Estimate | None:
    return median_ratio(of_rounds, np.random.default_rng(0)) if of_rounds else None
