"""Online serving in the report."""

from collections.abc import Callable, Iterator
from statistics import median

import numpy as np

from vllm_smart.bench.document import Heading, Paragraph, Part, Table
from vllm_smart.bench.records import Results
from vllm_smart.bench.serving_records import Latencies, ServingRecord
from vllm_smart.bench.statistics import median_ratio
from vllm_smart.bench.tables import UNKNOWN, with_interval


def serving_parts(results: Results) -> Iterator[Part]:
    """A table per drafter and rate; medians over rounds."""
    serving = results.suite.serving
    if serving is None:
        return
    yield Heading("Online serving", 2)
    yield Paragraph(
        f"A `vllm serve` per arm, all alive and asked by turns: {serving.num_prompts} requests of "
        f"{serving.output_tokens} tokens at each rate, arriving as a Poisson process, sent by `vllm "
        f"bench serve`; {serving.num_warmups} discarded requests before each rate. Milliseconds: "
        f"median / 90th / 99th percentile; medians over {serving.repeats} round(s). Over plain: "
        "medians of the rounds' ratios with 90% intervals, of tokens per second and of plain's "
        "median time per token over the arm's; above 1 is faster."
    )
    for drafter in results.suite.drafters:
        for rate in sorted(serving.rates):
            records = [r for r in results.serving if r.drafter == drafter and r.rate == rate]
            yield Heading(f"{drafter}, {rate:g} requests per second", 3)
            yield _rate_table(results, records)
    planned = len(results.suite.drafters) * serving.repeats * len(serving.rates) * len(serving.arms)
    if len(results.serving) < planned:
        yield Paragraph(f"INCOMPLETE: {len(results.serving)} of {planned} serving runs were made.")


def _rate_table(results: Results, records: list[ServingRecord]) -> Table:
    by_arm: dict[str, dict[int, ServingRecord]] = {}
    for record in records:
        by_arm.setdefault(record.arm, {})[record.repeat] = record
    plain = by_arm.get(results.suite.plain_arm.label, {})
    rows = []
    for arm in results.suite.serving.arms if results.suite.serving else ():
        found = by_arm.get(arm, {})
        if not found:
            rows.append([arm, *[UNKNOWN] * 6])
            continue
        shared = [(found[repeat], plain[repeat]) for repeat in sorted(found.keys() & plain.keys())]
        of_arm = list(found.values())
        rows.append(
            [
                arm,
                f"{median(record.tokens_per_s for record in of_arm):.1f}",
                _percentiles(of_arm, lambda record: record.ttft_ms),
                _percentiles(of_arm, lambda record: record.tpot_ms),
                _percentiles(of_arm, lambda record: record.itl_ms),
                _ratio([ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in shared]),
                _ratio([theirs.tpot_ms.p50 / ours.tpot_ms.p50 for ours, theirs in shared]),
            ]
        )
    columns = ["arm", "tokens/s", "TTFT ms", "TPOT ms", "ITL ms", "tokens/s over plain"]
    return Table([*columns, "TPOT over plain"], rows)


def _percentiles(records: list[ServingRecord], of: Callable[[ServingRecord], Latencies]) -> str:
    found = [of(record) for record in records]
    medians = [median(values) for values in zip(*((f.p50, f.p90, f.p99) for f in found), strict=True)]
    return " / ".join(f"{value:.1f}" for value in medians)


def _ratio(of_rounds: list[float]) -> str:
    if not of_rounds:
        return UNKNOWN
    return with_interval(median_ratio(of_rounds, np.random.default_rng(0)))
