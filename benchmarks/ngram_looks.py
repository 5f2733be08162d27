"""What n-grams alone gain over plain decoding by fixed costs, looks included.

    OMP_NUM_THREADS=1 python -m benchmarks.ngram_looks --out docs/results/ngram-looks.json

The shipped target goes on with the prompts of `vllm-smart bench` under `smart`. Steps cost what
`docs/results/mixed-trees-costs.json` says, scaled to a plain step of 31 ms at batch 8, as two cores
take for that pair; each look costs what it took to measure on one core. So tokens, rows and looks are
counted, and no decision depends on a clock. Beside it, what a look has really taken here. Two minutes
on a core.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixed_trees import WORKLOADS, costs, write_table
from vllm_smart.bench.workloads import Prompts
from vllm_smart.profiling import CostTable

LOADS = ((8, 24), (8, 96), (1, 64), (32, 32))  # requests, and tokens of each
PLAIN_MS, AT_BATCH = 31.0, 8
LOOK_MS, LOOK_REQUEST_MS = 0.8, 0.02
REPEATS = (1, 2, 3)


def scaled() -> CostTable:
    """A plain step takes PLAIN_MS at batch AT_BATCH."""
    table = costs()
    factor = PLAIN_MS / table.verify_ms(AT_BATCH)
    points = {
        name: tuple((count, ms * factor) for count, ms in getattr(table.samples, name))
        for name in ("verify", "draft", "read")
    }
    return CostTable(table.samples.model_copy(update=points))


class Watch:
    """Counts an in-process engine's steps.

    Attributes:
        steps: of each, requests that emitted, tokens emitted, nodes verified, and whether it looked.
        look_us: host time of those that looked.
    """

    def __init__(self, llm: Any) -> None:
        executor = llm.llm_engine.engine_core.engine_core.model_executor
        speculator = executor.driver_worker.worker.model_runner.speculator
        self._runtime, self._drafting = speculator.runtime, speculator._drafting
        self._grow = self._drafting._grow
        self._drafting._grow = self._watched
        self.steps: list[tuple[int, int, int, bool]] = []
        self.look_us: list[float] = []

    def _watched(self, outcome: Any, *args: Any) -> Any:
        start = time.perf_counter()
        grown = self._grow(outcome, *args)
        if self._runtime.looks_up:
            self.look_us.append((time.perf_counter() - start) * 1e6)
        plan, emits = outcome.plan, outcome.result.emits
        num_requests, num_accepted, num_nodes = int(emits.sum()), 0, 0
        if not plan.is_plain:
            num_nodes = int(plan.trees.num_nodes.sum()) - len(plan.trees.num_nodes)
            if plan.num_accepted is not None:
                num_accepted = int(plan.num_accepted[emits].sum())
        if plan.input_batch.num_tokens == num_requests + num_nodes:  # no prompt is computed
            looks_up = bool(self._runtime.looks_up)
            self.steps.append((num_requests, num_requests + num_accepted, num_nodes, looks_up))
        return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")
    from vllm import LLM, SamplingParams

    from vllm_smart.demo_model import demo_model_paths

    target, table = demo_model_paths()["target"], scaled()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "costs.json"
        write_table(table, path)
        settings = {
            "drafter": {"method": "ngram"},
            "tree": {"node_budget": 32},
            "cost_table": {"path": str(path), "correct": False},
        }
        llm = LLM(
            model=str(target),
            dtype="float32",
            enforce_eager=True,
            max_num_seqs=max(batch_size for batch_size, _ in LOADS),
            max_model_len=1024,
            gpu_memory_utilization=0.3,
            speculative_config={"model": "vllm_smart.SmartProposer"},
            additional_config={"smart": settings},
        )
    watch, found = Watch(llm), []
    for batch_size, num_tokens in LOADS:
        for workload in WORKLOADS:
            prompts = Prompts(workload, 0, target / "tokenizer.json")
            for repeat in (0, *REPEATS):
                params = SamplingParams(
                    temperature=workload.temperature, seed=1, max_tokens=num_tokens, ignore_eos=True
                )
                chosen = prompts.choose(batch_size, repeat)
                llm.generate([{"prompt_token_ids": ids} for ids in chosen], params, use_tqdm=False)
                if repeat == 0:  # it learns
                    watch.steps.clear()
            found.append(row(workload.label, batch_size, num_tokens, watch, table))
            watch.steps.clear()
            watch.look_us.clear()
            print(json.dumps(found[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def row(label: str, batch_size: int, num_tokens: int, watch: Watch, table: CostTable) -> dict[str, Any]:
    """One workload's totals at one load."""
    ms = plain_ms = 0.0
    for num_requests, emitted, num_nodes, looks_up in watch.steps:
        ms += table.verify_ms(num_requests + num_nodes)
        ms += (LOOK_MS + LOOK_REQUEST_MS * num_requests) * looks_up
        plain_ms += emitted / num_requests * table.verify_ms(num_requests)
    return {
        "text": label,
        "batch_size": batch_size,
        "output_tokens": num_tokens,
        "of_plain": round(plain_ms / ms, 4),
        "steps": len(watch.steps),
        "looks": sum(looks_up for *_, looks_up in watch.steps),
        "look_us": round(float(np.median(watch.look_us))) if watch.look_us else None,
    }


if __name__ == "__main__":
    main()
