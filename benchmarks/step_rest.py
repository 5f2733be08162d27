"""What it gains that a drafter rests in steps for which n-grams promise enough: by replay.

    OMP_NUM_THREADS=1 python -m benchmarks.step_rest --out runs/step-rest

The shipped pair goes on with prompts of `vllm-smart bench`, one at a time, as `mixed_trees` does, by
the same costs. Of each text: how fast both sources are over plain decoding, with steps that rest and
without, and how fast n-grams and the drafter are alone. Three minutes on a core; `--judge` reads a
trace that is there.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.mixed_trees import Recording, by_workload, costs, run
from vllm_smart.bench.workloads import Workload
from vllm_smart.config import SmartPolicyConfig
from vllm_smart.trace import Trace, replay

WHAT = Recording(
    [
        Workload(text="code"),
        Workload(text="chat"),
        Workload(text="code", name="code-long", prompt_tokens=768),
        Workload(text="edit", name="edit-long", prompt_tokens=768),
    ],
    batch_size=1,
    num_batches=8,
    num_tokens=192,
)


def judge(out: Path) -> dict[str, Any]:
    """By text."""
    table, found = costs(), {}
    for label, trace in by_workload(out).items():
        alone = {of: replay(trace, "smart", table, of).speedup for of in ("ngram", "model")}
        rested = replay(trace, "smart", table, "both")
        never = replay(_without_rests(trace), "smart", table, "both")
        found[label] = {
            "num_steps": rested.num_steps,
            "rests": rested.num_rests / rested.num_steps,
            "speedup": {**alone, "both": rested.speedup, "both_without_rests": never.speedup},
        }
    return found


def _without_rests(trace: Trace) -> Trace:
    """The same under a policy whose drafter always runs. At batch 1 the gate never rests anyway."""
    config = trace.header.config.model_copy(update={"policy": SmartPolicyConfig(may_turn_off=False)})
    return replace(trace, header=trace.header.model_copy(update={"config": config}))


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| text | steps | rest | n-grams, drafter: of plain | both | without rests | gain |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for label, of in found.items():
        speedup = of["speedup"]
        both, never = speedup["both"], speedup["both_without_rests"]
        lines.append(
            f"| {label} | {of['num_steps']} | {of['rests']:.2f} | {speedup['ngram']:.2f}, "
            f"{speedup['model']:.2f} | {both:.3f} | {never:.3f} | {both / never:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, WHAT, judge, table)
