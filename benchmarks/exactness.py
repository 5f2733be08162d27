"""How many greedy texts differ from plain vLLM's, by dtype, model, drafter and policy.

    OMP_NUM_THREADS=1 python -m benchmarks.exactness --out docs/results/exactness [CASE ...]

Every case serves the same prompts with one model: plain vLLM in four batch shapes, the first of which
is the reference; our trees in the reference's shape; a control whose attention sums in another order.
Plain vLLM is the same runner in the same dtype, on one thread. An hour for all cases on a CPU; those
whose results are there already are not run again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests import zoo
from tests.e2e import scenarios
from vllm_smart.demo_model import demo_model_paths

NUM_TEXTS, NUM_TOKENS = 200, 64
SHAPES = {"16 seats": 16, "1 seat": 1, "4 seats": 4, "32 seats": 32}  # `max_num_seqs` of plain vLLM
DTYPES = ("bfloat16", "float16", "float32")
MODELS = ("qwen3", "mixtral", "phi3", "olmo2", "gemma")
CASES = tuple(
    [f"pair {dtype}" for dtype in DTYPES]
    + ["pair int8"]
    + [f"{model} {dtype}" for model in MODELS for dtype in DTYPES[:1]]
)
FIXED_TREE = scenarios.FIXED_TREE
# Does not rest, so that trees of many sizes are verified under costs that let them pay.
SMART = {"name": "smart", "may_turn_off": False}
CONTROL = "another order of summation"


def prompts() -> list[list[int]]:
    """NUM_TEXTS prompts as token ids: the held-out ones, then the same cut to two thirds."""
    whole = scenarios.prompts()
    return [*whole, *(ids[: 2 * len(ids) // 3] for ids in whole)][:NUM_TEXTS]


def _run(name: str, **more: Any) -> dict[str, Any]:
    params = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    return {"name": name, "prompts": prompts(), "params": params, **more}


def jobs(case: str, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, job of `tests.e2e.driver`) of every engine of a case; the first is the reference."""
    model, _, dtype = case.partition(" ")
    if model == "pair":
        target = demo_model_paths()["target"]
        methods = dict.fromkeys(scenarios.METHODS)
    else:
        target = zoo.tiny_model(model, folder)
        methods = {"draft_model": zoo.tiny_drafter(model, folder)}
    if dtype == "int8":
        target, dtype = zoo.with_int8_weights(target, folder), "bfloat16"
    base = {"model": str(target), "dtype": dtype, "enforce_eager": True, "seed": 0}
    for shape, seats in SHAPES.items():
        sizes = {**scenarios.ROOMY, "max_num_seqs": seats}
        yield f"plain, {shape}", {"engine": {**base, **sizes}, "runs": [_run("greedy")]}
    for method, drafter in methods.items():
        engine = scenarios.with_trees(method)
        settings = engine["additional_config"]["smart"]
        if drafter is not None:
            settings["drafter"]["model"] = str(drafter)
        settings["cost_table"] = {"path": "costs.json", "correct": False}
        runs = [_run("fixed_tree", policy=FIXED_TREE), _run("smart", policy=SMART)]
        if method == "draft_model" and not torch.cuda.is_available():
            runs.append(_run(CONTROL, policy=FIXED_TREE, control=CONTROL))
        yield (
            method,
            {
                "engine": {**base, **scenarios.ROOMY, **engine},
                "runs": runs,
                "files": {"costs.json": json.dumps(scenarios.costs())},
            },
        )


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """The results of a job's runs, from an engine in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "job.json"), Path(folder, "result.json")
        question.write_text(json.dumps(job))
        command = [sys.executable, "-m", "tests.e2e.driver", str(question), str(answer)]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            sys.exit(process.stderr[-4000:])
        return dict(json.loads(answer.read_text()))


def compare(case: str, folder: Path) -> list[dict[str, Any]]:
    """One row per run of a case: texts that differ from the reference's, and what was drafted."""
    rows: list[dict[str, Any]] = []
    reference: list[Any] = []
    for name, job in jobs(case, folder):
        for run, result in serve({**job, "rows_as_served": True}).items():
            texts = [output[0]["token_ids"] for output in result["outputs"]]
            reference = reference or texts
            rows.append(
                {
                    "case": case,
                    "engine": name if name.startswith("plain") else f"{name}, {run}",
                    "texts": len(texts),
                    "differ": sum(a != b for a, b in zip(texts, reference, strict=True)),
                    "trees": result["num_trees"],
                    "accepted_nodes": result["num_accepted"],
                    "moved_nodes": result["num_moved"],
                    "steps_with_branches": result["num_branching_steps"],
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of all rows."""
    keys = ("case", "engine", "texts", "differ", "trees", "accepted_nodes", "moved_nodes")
    lines = ["| " + " | ".join(key.replace("_", " ") for key in keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the cases whose results are missing, then write all of them as one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {CASES}; all by default")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stored = {case: args.out / f"{case.replace(' ', '-')}.json" for case in CASES}
    for case in args.cases or CASES:
        if not stored[case].exists():
            with tempfile.TemporaryDirectory() as folder:
                stored[case].write_text(json.dumps(compare(case, Path(folder)), indent=1) + "\n")
    rows = [row for file in stored.values() if file.exists() for row in json.loads(file.read_text())]
    (args.out / "table.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
