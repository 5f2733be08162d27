"""From results to `report.md` and `report.html`. Every sentence about the outcome is computed."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from vllm_smart.bench.analysis import Comparison
from vllm_smart.bench.arms import StockScheduleArm
from vllm_smart.bench.disturbance import disturbance, undisturbed
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
from vllm_smart.bench.output_check import output_check
from vllm_smart.bench.plot import plot_speedups
from vllm_smart.bench.records import Results
from vllm_smart.bench.serving_parts import serving_parts
from vllm_smart.bench.statistics import Estimate
from vllm_smart.bench.step_tables import prediction_tables, step_tables
from vllm_smart.bench.tables import (
    ablation_table,
    chain_table,
    latency_tables,
    speedup_tables,
    with_interval,
    with_prompts,
)
from vllm_smart.bench.trace_parts import cost_parts, cost_table_of, trace_parts

_MOST_LOSSES = 40
_FEW_ROUNDS = 5


def write_report(results: Results, out: Path) -> None:
    """Write `report.md`, `report.html` and pictures into `out`.

    Traces and cost tables are read from where the run left them in `out`, where there are any.
    """
    suite = results.suite
    parts: list[Part] = [Heading("Decoding throughput, side by side", 1), *_preamble(results)]
    for drafter in suite.drafters:
        for workload in suite.workloads:
            comparison = Comparison(results, drafter, workload.label)
            if comparison.batch_sizes:
                parts += _comparison_parts(comparison, results, out)
        parts += _drafter_parts(drafter, results, out)
    parts += serving_parts(results)
    parts += _provenance(results)
    (out / "report.md").write_text(to_markdown(parts), encoding="utf-8")
    (out / "report.html").write_text(to_html(parts), encoding="utf-8")


def _preamble(results: Results) -> Iterator[Part]:
    suite = results.suite
    if results.missing:
        yield Paragraph(
            "INCOMPLETE: the run was stopped; what follows is what was measured by then. Missing "
            "measurements: " + ", ".join(f"{n} of {load}" for load, n in results.missing.items()) + "."
        )
    yield Paragraph(
        f"Medians over {suite.repeats} round(s). In a round every arm decodes the same number of "
        "tokens per request of the same prompts, in an engine that stays alive. Arms of different "
        f"engines take turns of about {suite.turn_s:g} s, whoever has got least far first, and plain "
        "decoding is always one of them, and `smart` beside every arm of another engine. Arms that "
        "took turns are compared directly, others by their ratios to plain decoding, so that a machine "
        "whose speed changes from minute to minute does so for both. Before the first round, "
        f"{suite.warmup_runs} discarded "
        "run(s) of each arm at each load, in which it learns. Speedups compare decode tokens per "
        "second: from the moment every request has its first token until the first request has "
        "ended; medians over rounds. In brackets: 90% bootstrap intervals over rounds"
        + ("." if suite.repeats >= _FEW_ROUNDS else "; with so few rounds, a rough guide only.")
    )
    stock = "vLLM as it comes, with our plugin not loaded"
    if suite.stock_runner == "v2":
        stock = "vLLM's own, on its V2 model runner with the CPU kernels of our plugin"
    shared = ""
    if suite.share_stock_engine:
        shared = (
            " Chains of one method share an engine, whose K is switched by vLLM's own schedule "
            "(num_speculative_tokens_per_batch_size)."
        )
    yield Paragraph(
        f"plain, stock-chain, stock-schedule and ngram arms are {stock}.{shared} All other arms are "
        "our plugin, off included; each keeps what it learnt from its own runs, and only that."
    )
    _, left_out = undisturbed(results)
    if left_out is not None:
        yield Paragraph(f"The machine was busy with something else at times: {left_out}.")
    busy = disturbance(results)
    if busy is not None:
        yield Paragraph(
            f"WARNING: the machine was busy with something else: {busy}. Do not quote these numbers."
        )


def _comparison_parts(comparison: Comparison, results: Results, out: Path) -> Iterator[Part]:
    drafter, workload = comparison.drafter, comparison.workload
    picture = out / f"speedup-{drafter}-{workload}.png"
    plot_speedups(comparison, picture)
    yield Heading(f"Drafter {drafter}, workload {workload}", 2)
    yield Bullets(list(_verdicts(comparison, results)))
    yield Image(picture, f"Speedup over plain decoding by batch size, {drafter}, {workload}")
    yield from _loss_parts(comparison)
    yield from speedup_tables(comparison)
    yield from chain_table(comparison)
    yield from ablation_table(comparison)
    yield from prediction_tables(comparison)
    yield from step_tables(comparison)
    yield from latency_tables(comparison)
    yield from output_check(comparison, results)


def _verdicts(comparison: Comparison, results: Results) -> Iterator[str]:
    """The outcome in a few sentences."""
    for arm in comparison.ours:
        plain = comparison.mean_ratio(arm, comparison.plain)
        worst = _worst({s: comparison.ratio(arm, comparison.plain, s) for s in comparison.batch_sizes})
        yield f"{arm} / plain, geometric mean over batch sizes: {with_interval(plain)}; {worst}."
        if comparison.chains:
            best = comparison.mean_over_best_chain(arm)
            worst = _worst({s: comparison.over_best_chain(arm, s) for s in comparison.batch_sizes})
            yield f"{arm} / best chain of each batch size by hindsight: {with_interval(best)}; {worst}."
        single = comparison.best_single_chain()
        if single is not None:
            ratio = comparison.mean_ratio(arm, single.label)
            yield f"{arm} / {single.label}, the best chain for all batch sizes: {with_interval(ratio)}."
            yield with_prompts(comparison, arm)
        for other in results.suite.arms:
            if isinstance(other, StockScheduleArm):
                ratio = comparison.mean_ratio(arm, other.label)
                yield f"{arm} / {other.label}, K by batch size: {with_interval(ratio)}."
    schedule = results.best_schedules.get(f"{comparison.drafter} {comparison.workload}")
    if schedule:
        by_size = ", ".join(f"{k} from batch {size}" for size, k in schedule.items())
        yield f"stock-schedule has, by the chains of the first round, K = {by_size}."


def _worst(ratios: dict[int, Estimate | None]) -> str:
    known = {size: ratio for size, ratio in ratios.items() if ratio is not None}
    if not known:
        return "nothing measured"
    size = min(known, key=lambda size: known[size].value)
    return f"least at batch {size}, {with_interval(known[size])}"


def _loss_parts(comparison: Comparison) -> Iterator[Part]:
    if not comparison.ours:
        return
    names = " or ".join(comparison.ours)
    yield Heading("Where we lose", 3)
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


def _drafter_parts(drafter: str, results: Results, out: Path) -> Iterator[Part]:
    """What does not depend on the workload."""
    table = cost_table_of(out / "cost_tables", drafter)
    trace = out / "traces" / f"{drafter}.jsonl"
    if table is None and not trace.exists():
        return
    yield Heading(f"Drafter {drafter}: costs and acceptance", 2)
    if table is not None:
        yield from cost_parts(table, out, drafter, results.suite.engine.max_num_seqs)
    if trace.exists():
        yield from trace_parts(trace, out, drafter)


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
