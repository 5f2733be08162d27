"""Generates with every drafter on one of vLLM's two model runners, in one process.

`python -m tests.adapter.cpu.run_engines RESULT`; VLLM_USE_V2_MODEL_RUNNER chooses the runner.
"""

import json
import sys
from pathlib import Path
from typing import Any

from vllm_smart.demo_model import demo_model_paths, held_out_prompts

_METHODS = {
    "plain": None,
    "eagle": "eagle",
    "eagle3": "eagle3",
    "draft": "draft_model",
    "ngram": "ngram",
}
_GREEDY = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": _GREEDY,
    "penalties": {
        **_GREEDY,
        "repetition_penalty": 1.4,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.3,
    },
    "bad_words": {**_GREEDY, "bad_words": ["self", " the", ")\n"]},
    "allowed_tokens": {**_GREEDY, "allowed_token_ids": list(range(100, 400))},
    "min_tokens": {
        "temperature": 0.0,
        "max_tokens": 24,
        "min_tokens": 9,
        "stop_token_ids": list(range(200, 320)),
    },
    "logprobs": {**_GREEDY, "logprobs": 4},
}
DRAFTERS = tuple(_METHODS)
DRAFT_MODELS = DRAFTERS[1:-1]


def main(result: Path) -> None:
    """Write {drafter: {"tokens": {sampling: ...}, "logprobs": ..., "counters": ...}}."""
    result.write_text(json.dumps({drafter: _generate(drafter) for drafter in DRAFTERS}))


def _generate(drafter: str) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    paths = demo_model_paths()
    speculation = {
        "method": _METHODS[drafter],
        "num_speculative_tokens": 3,
    }
    if drafter in paths:
        speculation["model"] = str(paths[drafter])
    else:
        speculation |= {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
    llm = LLM(
        str(paths["target"]),
        # Rounding may differ with the shape of a batch, and must not decide anything.
        dtype="float32",
        enforce_eager=True,
        max_model_len=384,
        max_num_seqs=8,
        # Small, so that prompts are prefilled in chunks beside decoding requests.
        max_num_batched_tokens=64,
        gpu_memory_utilization=0.2,
        disable_log_stats=False,
        speculative_config=None if drafter == "plain" else speculation,
    )
    prompts = held_out_prompts()[-5:]
    outputs = {
        name: llm.generate(prompts, SamplingParams(**sampling), use_tqdm=False)
        for name, sampling in SAMPLING.items()
    }
    counters = {
        metric.name: getattr(metric, "values", None) or metric.value
        for metric in llm.get_metrics()
        if "spec_decode" in metric.name
    }
    del llm
    cleanup_dist_env_and_memory()
    return {
        "tokens": {name: [r.outputs[0].token_ids for r in out] for name, out in outputs.items()},
        "logprobs": [
            [[logprob.logprob for logprob in step.values()] for step in r.outputs[0].logprobs]
            for r in outputs["logprobs"]
        ],
        "counters": counters,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
