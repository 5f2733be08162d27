"""Acceptance of one drafter as vLLM's own chain speculation counts it: a check of the formats.

Usage: `python -m training.vllm_check --models FOLDER --kind eagle3`. One drafter per process,
because vLLM's metrics are global.
"""

import argparse
import json
import os
from pathlib import Path

from training import corpus
from training.evaluate import CHAIN_LENGTH, NUM_TOKENS, held_out_prompt_ids

METHODS = {"eagle": "eagle", "eagle3": "eagle3", "draft": "draft_model"}
# Set before vLLM is imported: the old runner, in this process, on a small KV cache.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "HF_HUB_OFFLINE": "1",
}


def measure(models: Path, kind: str, cache: Path, dtype: str) -> dict[str, object]:
    """Returns acceptance as `evaluate.acceptance` does, on the same prompts."""
    os.environ.update(ENVIRONMENT)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(models / "target"),
        dtype=dtype,
        enforce_eager=True,
        max_model_len=1024,
        gpu_memory_utilization=0.3,
        disable_log_stats=False,
        speculative_config={
            "method": METHODS[kind],
            "model": str(models / kind),
            "num_speculative_tokens": CHAIN_LENGTH,
        },
    )
    ids = held_out_prompt_ids(corpus.prepare(cache)[2]).tolist()
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    llm.generate([{"prompt_token_ids": row} for row in ids], sampling, use_tqdm=False)
    counters = {metric.name: metric for metric in llm.get_metrics()}
    drafts = counters["vllm:spec_decode_num_drafts"].value
    accepted = counters["vllm:spec_decode_num_accepted_tokens"].value
    per_position = counters["vllm:spec_decode_num_accepted_tokens_per_pos"].values
    return {
        "acceptance_length": round(1 + accepted / drafts, 3),
        "per_position": [round(count / drafts, 3) for count in per_position],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--kind", choices=sorted(METHODS), required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--dtype", default="float32")
    print(json.dumps(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
