"""From results to `report.md` and `report.html`. Every sentence about the outcome is computed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from vllm_smart.bench.analysis import Comparison, Mismatch
from vllm_smart.bench.document import (
    Bullets,
    Code,
    Heading,
    Image,
    Paragraph,
    Part,
    Table,
    to_html,
    to_markdown,
)
from vllm_smart.bench.plot import plot_speedups
from vllm_smart.bench.records import Results
from vllm_smart.bench.tables import chain_table, quantity_tables, speedup_tables, with_interval

_MOST_LOSSES = 40


def write_report(results: Results, out: Path) -> None:
    """Write `report.md`, `report.html` and one `speedup-DRAFTER.png` per drafter into `out`."""
    parts: list[Part] = [Heading("Decoding throughput, side by side", 1), *_preamble(results)]
    for drafter in results.suite.drafters:
        comparison = Comparison(results, drafter)
        if comparison.batch_sizes:
            parts += _drafter_parts(comparison, results, out)
    parts += _provenance(results)
    (out / "report.md").write_text(to_markdown(parts), encoding="utf-8")
    (out / "report.html").write_text(to_html(parts), encoding="utf-8")


def unexpected_mismatches(results: Results) -> list[str]:
    """Sentences about arms whose text differs where it must not: greedy decoding in float32."""
    if results.suite.temperature > 0 or results.suite.engine.dtype != "float32":
        return []
    return [
        f"{drafter}: {_mismatch_sentence(mismatch)}"
        for drafter in results.suite.drafters
        for mismatch in Comparison(results, drafter).mismatches()
        if mismatch.num_differing
    ]


def _preamble(results: Results) -> Iterator[Part]:
    suite = results.suite
    if not results.is_complete:
        yield Paragraph("INCOMPLETE: the run was stopped; what follows is what was measured by then.")
    yield Paragraph(
        f"Medians over {suite.repeats} round(s). In a round every arm decodes the same "
        f"{suite.num_tokens} tokens per request of the same prompts, one arm at a time, in shuffled "
        "order, each in an engine that stays alive. Speedups compare decode tokens per second: from "
        "the moment every request has its first token until the last request has ended. In brackets: "
        "90% bootstrap intervals over rounds"
        + ("." if suite.repeats >= 5 else "; with so few rounds, a rough guide only.")
    )
    stock = "vLLM as it comes, with our plugin not loaded"
    if suite.stock_runner == "v2":
        stock = "vLLM's own, on its V2 model runner with the CPU kernels of our plugin"
    yield Paragraph(
        f"plain and stock-chain arms are {stock}; all other arms are our plugin in one engine per "
        "drafter, off included. Each arm keeps what it learnt from its own runs, and only that."
    )
    loads = [record.load_1m for record in results.records]
    cores = results.environment["cores"]
    if loads and max(loads) > cores + 1:
        yield Paragraph(
            f"WARNING: the machine was busy with something else: load average up to {max(loads):.1f} "
            f"on {cores} cores. Do not quote these numbers."
        )


def _drafter_parts(comparison: Comparison, results: Results, out: Path) -> Iterator[Part]:
    picture = out / f"speedup-{comparison.drafter}.png"
    plot_speedups(comparison, picture)
    yield Heading(f"Drafter {comparison.drafter}", 2)
    yield Bullets(list(_verdicts(comparison)))
    yield Image(picture, f"Speedup over plain decoding by batch size, {comparison.drafter}")
    yield from speedup_tables(comparison)
    yield from chain_table(comparison)
    yield from _loss_parts(comparison)
    yield from quantity_tables(comparison)
    yield from _output_check(comparison, results)


def _verdicts(comparison: Comparison) -> Iterator[str]:
    """The outcome in a few sentences."""
    for arm in comparison.ours:
        plain = comparison.mean_ratio(arm, comparison.plain)
        yield f"{arm} / plain, geometric mean over batch sizes: {with_interval(plain)}."
        if comparison.chains:
            best = comparison.mean_over_best_chain(arm)
            yield f"{arm} / best chain of each batch size by hindsight: {with_interval(best)}."
        single = comparison.best_single_chain()
        if single is not None:
            ratio = comparison.mean_ratio(arm, single.label)
            yield f"{arm} / {single.label}, the best chain for all batch sizes: {with_interval(ratio)}."


def _loss_parts(comparison: Comparison) -> Iterator[Part]:
    if not comparison.ours:
        return
    names = " or ".join(comparison.ours)
    yield Heading(f"Where {names} loses", 3)
    losses = comparison.losses()
    if not losses:
        yield Paragraph(f"Nowhere in this run: no other arm had a higher median than {names}.")
        return
    yield Bullets(
        [
            f"batch {loss.batch_size}: {loss.arm} is {with_interval(loss.ratio)} times {loss.other}"
            + ("" if loss.is_certain else " (could be a tie)")
            for loss in losses[:_MOST_LOSSES]
        ]
    )
    if len(losses) > _MOST_LOSSES:
        yield Paragraph(f"And {len(losses) - _MOST_LOSSES} more, each smaller.")


def _output_check(comparison: Comparison, results: Results) -> Iterator[Part]:
    suite = results.suite
    yield Heading("Output against plain decoding", 3)
    if suite.temperature > 0:
        yield Paragraph("Not compared: temperature > 0.")
        return
    differing = [mismatch for mismatch in comparison.mismatches() if mismatch.num_differing]
    if not differing:
        yield Paragraph("Every token of every arm is equal.")
        return
    expected = "FAILED: in float32 all tokens must be equal."
    if suite.engine.dtype != "float32":
        expected = f"Near-ties are expected to fall differently in {suite.engine.dtype}."
    yield Paragraph(expected)
    yield Bullets([_mismatch_sentence(mismatch) for mismatch in differing])


def _mismatch_sentence(mismatch: Mismatch) -> str:
    first = mismatch.first_indices
    return (
        f"{mismatch.arm}: {mismatch.num_differing} of {mismatch.num_requests} requests differ, "
        f"the earliest at token {first[0]}, the median one at token {int(np.median(first))}."
    )


def _provenance(results: Results) -> Iterator[Part]:
    yield Heading("How it was run", 2)
    yield Code(results.command)
    yield Table(["", "value"], [[name, str(value)] for name, value in results.environment.items()])
    rows = [
        [name, str(engine["model_runner"]), str(engine["num_threads"])]
        for name, engine in results.engines.items()
    ]
    yield Table(["engine", "model runner", "threads"], rows)
    settings = results.suite.model_dump(mode="json", exclude_defaults=True)
    yield Code(yaml.safe_dump(settings, sort_keys=False))
