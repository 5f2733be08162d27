"""What deciding costs: the controller's share of a decoding step, in the real engine.

    python -m benchmarks.controller_cost PAIR [--method eagle3] [--batch-sizes 1 8 32] [--out FILE]

PAIR is a folder made by `vllm-smart inflate`, or the shipped pair (`demo`). Every function of the
controller is timed inside the running engine: growing and ordering candidates, calibration,
the policy, selection, plan, masks, walk, learning, gate. Model forwards, sampling and KV compaction
are not the controller. Drafting never rests here, so every step is decided. Shares of one run are
comparable; absolute times are this machine's.
"""

import argparse
import functools
import json
import os
import time
from collections import defaultdict
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from unittest import mock

MAX_TOKENS = 96


class Stopwatch:
    """Seconds by part of the controller; a part's own calls into others are not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._depth = 0

    def timed(self, part: str, function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            if self._depth:
                return function(*args, **kwargs)
            self._depth += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - start
                self._depth -= 1

        return wrapper


@contextmanager
def watch_controller(runner, stopwatch: Stopwatch):
    """Time every part of the controller, and whole steps, while the context is open."""
    from vllm_smart.adapter import runtime, verifier
    from vllm_smart.growth import level
    from vllm_smart.profiling import StepClock
    from vllm_smart.proposer import CandidatePool, Candidates, backlog
    from vllm_smart.scheduler import Controller
    from vllm_smart.step import StepPlan

    policy = runner.speculator.runtime.controller.policy
    steps: list[float] = []
    begin = runtime.TreeRuntime.begin_step

    def begin_step(self, batch):
        steps.append(time.perf_counter())
        return begin(self, batch)

    parts = [
        ("candidates", CandidatePool, "__init__"),
        ("candidates", CandidatePool, "add_children"),
        ("candidates", CandidatePool, "frontier"),
        ("candidates", Candidates, "select"),
        ("draft rows", level.DraftSlots, "take"),
        ("policy", type(policy), "level"),
        ("policy", type(policy), "choose"),
        ("plan", StepPlan, "tree_rows"),
        ("walk", verifier, "walk_plan"),
        ("learning", runtime.TreeRuntime, "verified"),
        ("gate", Controller, "who_drafts"),
        ("step times", StepClock, "begins"),
        ("bookkeeping", runtime.TreeRuntime, "load"),
        ("bookkeeping", runtime.TreeRuntime, "drafted"),
        ("unread tokens", backlog.Backlog, "unread"),
    ]
    patches = [
        mock.patch.object(owner, name, stopwatch.timed(part, getattr(owner, name)))
        for part, owner, name in parts
    ]
    plan_make = stopwatch.timed("plan", StepPlan.make)
    patches.append(mock.patch.object(StepPlan, "make", plan_make))
    patches.append(mock.patch.object(runtime.TreeRuntime, "begin_step", begin_step))
    for patch in patches:
        patch.start()
    try:
        yield steps
    finally:
        for patch in patches:
            patch.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pair")
    parser.add_argument("--method", default="eagle3", choices=["eagle", "eagle3", "draft_model"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--node-budget", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--costs", type=Path, help="decide by this table, uncorrected")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from vllm_smart.demo_model import demo_model_paths, held_out_prompts

    shipped = demo_model_paths()
    folders = shipped if args.pair == "demo" else {k: Path(args.pair) / k for k in shipped}
    drafter = folders["draft" if args.method == "draft_model" else args.method]
    settings = {
        "drafter": {"method": args.method, "model": str(drafter)},
        "policy": {"name": "smart", "may_turn_off": False},
    }
    if args.costs:
        settings["cost_table"] = {"path": str(args.costs), "correct": False}
    proposer = {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": args.node_budget}
    llm = LLM(
        model=str(folders["target"]),
        dtype=args.dtype,
        max_model_len=1024,
        max_num_seqs=max(args.batch_sizes),
        gpu_memory_utilization=0.3,
        speculative_config=proposer,
        additional_config={"smart": settings},
    )
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    tokenizer = AutoTokenizer.from_pretrained(shipped["target"])
    prompts = [tokenizer.encode(text)[:128] for text in held_out_prompts()]
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    report = []
    for batch_size in args.batch_sizes:
        batch = [{"prompt_token_ids": prompts[i % len(prompts)]} for i in range(batch_size)]
        llm.generate(batch, params, use_tqdm=False)
        stopwatch = Stopwatch()
        with watch_controller(runner, stopwatch) as steps:
            llm.generate(batch, params, use_tqdm=False)
        step_ms = [1e3 * (b - a) for a, b in pairwise(steps)]
        total = sum(step_ms)
        parts = {k: 1e3 * v / len(step_ms) for k, v in stopwatch.seconds.items()}
        share = 1e3 * sum(stopwatch.seconds.values()) / total
        report.append(
            {"batch_size": batch_size, "steps": len(step_ms), "median_step_ms": median(step_ms)}
            | {"controller_share": share, "ms_per_step": parts}
        )
        mean_ms = total / len(step_ms)
        print(f"batch {batch_size:3d}: controller {100 * share:.2f}% of {mean_ms:.2f} ms a step")
        for part, ms in sorted(parts.items(), key=lambda item: -item[1]):
            print(f"    {part:12s} {ms:.3f} ms")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
