"""Serving a target's engines one after the other in a process of its own, and comparing their texts."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.coverage.cases import FEATURES, PLAIN, TARGETS, jobs

ROOT = Path(__file__).parents[2]
_OF_RUN = {"largest": "greedy"}  # which of plain's runs another is compared with


def measure(
    name: str,
    folder: Path,
    dtypes: tuple[str, ...] | None = None,
    drafters: tuple[str, ...] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the target called `name`: one for each drafter and dtype.

    Args:
        folder: where models are kept.
        dtypes, drafters: of the target's; None: all.
    """
    rows = []
    for dtype in dtypes or TARGETS[name].dtypes:
        of_dtype = jobs(name, dtype, folder)
        if drafters is not None:
            of_dtype = {engine: of_dtype[engine] for engine in (PLAIN, *drafters)}
        results = serve(of_dtype)
        plain = results.pop(PLAIN)
        rows += [_row(name, engine, dtype, plain, runs) for engine, runs in results.items()]
    return rows


def serve(engines: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results of `tests.e2e.driver` by engine; all engines run in one process.

    Raises:
        RuntimeError: an engine failed; the message has the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "jobs.json"), Path(folder, "results.json")
        question.write_text(json.dumps(engines))
        command = [sys.executable, "-m", "benchmarks.coverage.serve", str(question), str(answer)]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(process.stderr[-4000:])
        return dict(json.loads(answer.read_text()))


def texts(run: dict[str, Any]) -> list[list[int]]:
    """Token ids of each answer."""
    return [output[0]["token_ids"] for output in run["outputs"]]


def num_different(run: dict[str, Any], plain: dict[str, Any]) -> int:
    """Texts that differ."""
    return sum(a != b for a, b in zip(texts(run), texts(plain), strict=True))


def _row(
    name: str, drafter: str, dtype: str, plain: dict[str, Any], runs: dict[str, Any]
) -> dict[str, Any]:
    # What n-grams have accepted has no rank that says so: a node off the chain is one that was moved.
    return {
        "target": name,
        "attention": TARGETS[name].attention,
        "drafter": drafter,
        "dtype": dtype,
        "shape": "tree" if any(run["num_branching_steps"] for run in runs.values()) else "chain",
        "texts": sum(len(run["outputs"]) for run in runs.values()),
        "differ": {run: num_different(of, plain[_OF_RUN.get(run, run)]) for run, of in runs.items()},
        "distinct": len({tuple(text) for text in texts(plain["greedy"])}),
        "drafts": sum(run["num_trees"] for run in runs.values()),
        "accepted": sum(run["num_accepted"] for run in runs.values()),
        "off_chain": sum(run["num_moved"] for run in runs.values()),
        "backends": runs[next(iter(FEATURES))]["attention_backends"],
    }


def main(question: str, answer: str) -> None:
    """In the process of its own."""
    engines = json.loads(Path(question).read_text())
    sys.path.insert(0, os.getcwd())
    os.chdir(Path(answer).parent)
    from tests.e2e import driver

    results = {}
    for name, job in engines.items():
        results[name] = driver.run_engine(job)
        _forget()
    Path(answer).write_text(json.dumps(results))


def _forget() -> None:
    """Make room for the next engine."""
    import gc

    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main(*sys.argv[1:])
