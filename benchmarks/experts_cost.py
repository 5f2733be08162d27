"""Whether steps of a mixture of experts take as long as is predicted, however many rows they verify.

    OMP_NUM_THREADS=1 python -m benchmarks.experts_cost --out docs/results/experts-cost.json

A random Mixtral with 16 experts a layer, two for each token, whose experts are read from memory: a row
costs what the experts cost that no other row of the step has. Costs are measured at the start, then
requests are decoded by n-gram chains of several lengths. Steps are compared with the table alone and
with what the engine predicted, which learns while it serves. The control times steps as vLLM makes up
its dummy rows, all of them the same token. Nothing else may run. Four minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

_SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "vocab_size": 2048,  # the shipped tokenizer's
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_BATCHES, _LENGTHS = (1, 2, 4, 8), (1, 2, 3, 5)
_NUM_TOKENS, _PROMPT = 48, 48
_FIRST_STEPS = 32  # of each engine, in which it learns
_NEAR = 0.1


def make_model(folder: Path) -> None:
    """A random model, its weights wide enough that text varies."""
    import torch
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    from vllm_smart.demo_model import demo_model_paths

    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**_SHAPE, initializer_range=0.06)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo_model_paths()["target"]).save_pretrained(folder)


def observe(model: Path, is_control: bool, out: Path) -> None:
    """Write (rows, the table's ms, predicted ms, measured ms) of steps to `out`."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")
    import numpy as np
    from vllm import LLM, SamplingParams

    from vllm_smart.adapter.model_state import TreeModelState
    from vllm_smart.profiling.live_cost import CostLearner, StepShape

    if is_control:
        TreeModelState._fill = lambda self, dummy, tokens: None  # type: ignore[method-assign]
    seen: list[tuple[int, float, float, float]] = []
    learn = CostLearner.observe

    def watched(learner: CostLearner, shape: StepShape, measured_ms: float) -> float:
        predicted_ms = learn(learner, shape, measured_ms)
        table_ms = learner.cost.table.verify_ms(shape.num_tokens, shape.context)
        seen.append((shape.num_tokens, table_ms, predicted_ms, measured_ms))
        return predicted_ms

    CostLearner.observe = watched  # type: ignore[method-assign]
    settings = {"drafter": {"method": "ngram"}, "cost_table": {"measure": "start"}}
    llm = LLM(
        model=str(model),
        dtype="float32",
        max_num_seqs=max(_BATCHES),
        max_model_len=256,
        enable_prefix_caching=False,
        gpu_memory_utilization=0.3,
        speculative_config={"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 8},
        additional_config={"smart": settings},
    )
    random = np.random.default_rng(0)
    params = SamplingParams(temperature=0.0, max_tokens=_NUM_TOKENS, ignore_eos=True)
    for length in _LENGTHS:
        policy = {"name": "chain", "num_tokens": length}
        llm.collective_rpc("smart_reconfigure", args=({"policy": policy},))
        for batch in _BATCHES:
            # Each repeats a few tokens, so that n-grams have something to say.
            prompts = [random.integers(5, 2048, 6).tolist() * (_PROMPT // 6) for _ in range(batch)]
            llm.generate([{"prompt_token_ids": each} for each in prompts], params, use_tqdm=False)
    out.write_text(json.dumps(seen[_FIRST_STEPS:]))


def summary(steps: list[tuple[int, float, float, float]]) -> dict[str, Any]:
    """Errors of all steps, and times by number of rows."""
    by_rows = defaultdict(list)
    for rows, *ms in steps:
        by_rows[rows].append(ms)
    table, predicted = (
        [abs(step[at] / step[3] - 1.0) for step in steps if step[0] <= max(_BATCHES) * 9]
        for at in (1, 2)
    )
    return {
        "steps": len(steps),
        "table_median_error": median(table),
        "table_within_10%": sum(error < _NEAR for error in table) / len(table),
        "predicted_median_error": median(predicted),
        "predicted_within_10%": sum(error < _NEAR for error in predicted) / len(predicted),
        "rows": [
            {"rows": rows, "steps": len(ms)}
            | dict(
                zip(
                    ("table_ms", "predicted_ms", "measured_ms"),
                    map(median, zip(*ms, strict=True)),
                    strict=True,
                )
            )
            for rows, ms in sorted(by_rows.items())
            if len(ms) >= 8
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--observe", type=Path, help="a model, in a process of its own, to --out")
    parser.add_argument("--control", action="store_true", help="with --observe")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.observe:
        observe(args.observe, args.control, args.out)
        return
    report = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        for engine, flags in (("ours", []), ("control", ["--control"])):
            command = [sys.executable, "-m", "benchmarks.experts_cost", *flags]
            command += ["--observe", str(folder / "model"), "--out", str(folder / "steps.json")]
            environment = {**os.environ, "XDG_CACHE_HOME": str(folder / engine)}
            subprocess.run(command, check=True, env=environment)
            report[engine] = summary(json.loads((folder / "steps.json").read_text()))
    print(json.dumps(report, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
