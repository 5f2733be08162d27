"""N-grams and a drafter in one tree, beside a rule that takes either: by replay, of several texts.

    OMP_NUM_THREADS=1 python -m benchmarks.mixed_trees --out runs/mixed-trees

The shipped pair goes on with the prompts of `vllm-smart bench`, eight at a time, and traces what
EAGLE-3 and n-grams have named, five levels in every step. Of each text this tells how many of as many
nodes are accepted of ours, over those of `either_or` (`vllm-smart replay --against`); how far
probabilities are off, by source; and how fast n-grams, the drafter and both would be by a cost table.
Costs are those of a 208M pair on an AVX2 machine, so nothing depends on how busy the machine is. Four
minutes on a core; `--judge` reads a trace that is there.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import exp, log
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vllm_smart.bench.workloads import Prompts, Workload
from vllm_smart.config import SmartPolicyConfig
from vllm_smart.profiling import CostSamples, CostTable, TableKey, to_text
from vllm_smart.trace import Trace, calibration, compare, read_trace, replay

WORKLOADS = [
    Workload(text="code"),
    Workload(text="prose"),
    Workload(text="chat"),
    Workload(text="edit"),
    Workload(text="retrieval", prompt_tokens=256),
    Workload(text="code", name="code-long", prompt_tokens=768),
    Workload(text="edit", name="edit-long", prompt_tokens=768),
    Workload(text="code", temperature=0.8),
    Workload(text="edit", temperature=0.8),
]
RULES = ("either_or:5", "either_or:3")
COSTS = Path(__file__).parents[1] / "docs/results/mixed-trees-costs.json"
# All levels in every step: what a rule has wanted of the drafter must be known.
POLICY = {"name": "smart", "depth_rule": False, "may_turn_off": False, "beside_prompts": "draft"}
TREE = {"node_budget": 32, "depth": 5, "width": 4, "children": 4}


@dataclass(frozen=True)
class Recording:
    """What is generated of each text."""

    workloads: Sequence[Workload]
    batch_size: int
    num_batches: int
    num_tokens: int  # of each request


OF_ALL = Recording(WORKLOADS, batch_size=8, num_batches=4, num_tokens=96)


def costs() -> CostTable:
    """By which nodes are chosen, here and in replay."""
    return CostTable(CostSamples.model_validate(json.loads(COSTS.read_text())["samples"]))


def write_table(table: CostTable, path: Path) -> None:
    """Write costs as `cost_table.path` takes them."""
    key = json.loads(COSTS.read_text())["key"] | {"nodes": 1, "cost_version": 0}
    del key["vllm_smart_version"]
    path.write_text(to_text(table, TableKey(**key)))


def record(out: Path, what: Recording) -> None:
    """Write a trace of all texts to `out`, and which requests are of which."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")
    from vllm import LLM, SamplingParams

    from vllm_smart.demo_model import demo_model_paths

    pair = demo_model_paths()
    table = out / "costs.json"
    write_table(costs(), table)
    settings = {
        "drafter": {"method": "eagle3", "model": str(pair["eagle3"])},
        "ngram": {"max_nodes": 32},
        "policy": POLICY,
        "tree": TREE,
        "cost_table": {"path": str(table), "correct": False},
        "trace": {"path": str(out / "trace.jsonl"), "max_mb": 1024.0},
    }
    llm = LLM(
        model=str(pair["target"]),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=what.batch_size,
        max_model_len=1024,
        gpu_memory_utilization=0.3,
        speculative_config={"model": "vllm_smart.SmartProposer"},
        additional_config={"smart": settings},
    )
    requests: dict[str, str] = {}  # their texts
    for workload in what.workloads:
        prompts_of = Prompts(workload, 0, pair["target"] / "tokenizer.json")
        for repeat in range(what.num_batches):
            prompts = prompts_of.choose(what.batch_size, repeat)
            params = [
                SamplingParams(
                    temperature=workload.temperature,
                    seed=seed,
                    max_tokens=what.num_tokens,
                    ignore_eos=True,
                )
                for seed in range(what.batch_size)
            ]
            inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
            for answer in llm.generate(inputs, params, use_tqdm=False):
                requests[answer.request_id] = workload.label
    (out / "requests.json").write_text(json.dumps(requests))


def by_workload(out: Path) -> dict[str, Trace]:
    """The trace's steps of each text."""
    trace, requests = read_trace(out / "trace.jsonl"), json.loads((out / "requests.json").read_text())
    steps: dict[str, list[Any]] = {}
    for step in trace.steps:
        if step.decision.requests:
            request = step.decision.requests[0].request.partition("-")[0]
            steps.setdefault(requests[request], []).append(step)
    # Replayed is what would be served.
    config = trace.header.config.model_copy(update={"policy": SmartPolicyConfig()})
    header = trace.header.model_copy(update={"config": config})
    return {label: replace(trace, header=header, steps=tuple(found)) for label, found in steps.items()}


def judge(out: Path) -> dict[str, Any]:
    """What replay says of each text, and how far probabilities are off over all."""
    table, found = costs(), {}
    errors = _errors(read_trace(out / "trace.jsonl"))
    for label, trace in by_workload(out).items():
        rules = compare(trace, RULES, table)
        found[label] = {
            "num_trees": rules[0].num_trees,
            "rules": {
                row.rule: [row.num_nodes, row.num_accepted, row.ours_num_accepted] for row in rules
            },
            "errors": _errors(trace),
            "speedup": {
                sources: replay(trace, "smart", table, sources).speedup
                for sources in ("ngram", "model", "both")
            },
        }
    return {"texts": found, "errors": errors}


def _errors(trace: Trace) -> dict[str, tuple[int, float]]:
    """Candidates, and their expected calibration error, by source; too few say little."""
    by_source = calibration(trace).by_source
    return {name: (int(of.count.sum()), of.expected_error) for name, of in by_source.items()}


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| text | trees | " + " | ".join(f"of {rule}" for rule in RULES) + " | errors by source | "
        "n-grams, drafter, both: of plain |",
        "|---|---:|" + "---:|" * len(RULES) + "---|---|",
    ]
    logs: dict[str, list[float]] = {rule: [] for rule in RULES}
    for label, of in found["texts"].items():
        cells = []
        for rule in RULES:
            _, theirs, ours = of["rules"][rule]
            logs[rule].append(log(ours / theirs))
            cells.append(f"{ours / theirs:.3f}")
        errors = _listed(of["errors"])
        speedups = ", ".join(f"{speedup:.2f}" for speedup in of["speedup"].values())
        lines.append(f"| {label} | {of['num_trees']} | {' | '.join(cells)} | {errors} | {speedups} |")
    means = " | ".join(f"{exp(sum(of) / len(of)):.3f}" for of in logs.values())
    lines.append(f"| geometric mean; all | | {means} | {_listed(found['errors'])} | |")
    return "\n".join(lines)


def _listed(errors: dict[str, tuple[int, float]]) -> str:
    return ", ".join(f"{name} {error:.3f} of {count}" for name, (count, error) in errors.items())


def run(
    description: str | None,
    what: Recording,
    judge: Callable[[Path], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """The command: record, unless the trace is there, then judge, keep and print what was found."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of traces and results")
    parser.add_argument("--judge", action="store_true", help="the trace is there: judge it")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.judge:
        # An engine writes the last steps of its trace when its process ends.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            process.submit(record, args.out, what).result()
    found = judge(args.out)
    (args.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    run(__doc__, OF_ALL, judge, table)
