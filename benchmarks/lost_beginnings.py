"""What a drafter accepts that reads the prompts late, and so without their beginnings.

    python -m benchmarks.lost_beginnings [--drafter eagle3] [--tokens 128] [--least 300]

The shipped pair, one request after the other, with the largest trees whatever they cost:
with `beside_prompts: draft` a prompt is read when it is computed, with `weigh` a step later, as far as
it was kept.
Counts alone: the machine may be busy.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from vllm_smart.demo_model import demo_model_paths, held_out_prompts

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}


def free_costs() -> str:
    """A table by which all drafts pay."""
    from vllm_smart.profiling import CostSamples, TableKey
    from vllm_smart.profiling.store import SCHEMA

    key = dict.fromkeys(TableKey.model_fields, "any") | {"compiled": False}
    key |= {"tensor_parallel_size": 1, "nodes": 1, "cost_version": 1}
    samples = CostSamples(verify=((1, 10.0), (512, 10.1)), draft=((1, 0.01), (512, 0.02)))
    content = {"schema_version": SCHEMA, "created": "by hand", "key": key}
    return json.dumps({**content, "samples": samples.model_dump(mode="json")})


def acceptance_length(
    llm: Any, prompts: list[list[int]], beside_prompts: str, num_tokens: int
) -> float:
    """Tokens per step that verified a tree."""
    from vllm import SamplingParams

    policy = {"name": "smart", "beside_prompts": beside_prompts}
    llm.collective_rpc("smart_reconfigure", args=({"policy": policy},))
    (before,) = llm.collective_rpc("smart_counters")
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    for prompt in prompts:
        llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    (after,) = llm.collective_rpc("smart_counters")
    accepted, trees = (after[name] - before[name] for name in ("accepted_nodes", "trees"))
    return 1.0 + accepted / trees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drafter", default="eagle3", choices=("eagle", "eagle3", "draft_model"))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--least", type=int, default=300, help="tokens of a prompt")
    args = parser.parse_args()
    os.environ.update(_ENVIRONMENT)
    from transformers import AutoTokenizer
    from vllm import LLM

    target = demo_model_paths()["target"]
    tokenizer = AutoTokenizer.from_pretrained(target)
    prompts = [tokenizer.encode(text) for text in held_out_prompts()]
    prompts = [prompt for prompt in prompts if args.least <= len(prompt) < 1024 - args.tokens]
    with tempfile.TemporaryDirectory() as folder:
        costs = Path(folder) / "costs.json"
        costs.write_text(free_costs(), encoding="utf-8")
        name = "draft" if args.drafter == "draft_model" else args.drafter
        settings = {
            "drafter": {"method": args.drafter, "model": f"demo:{name}"},
            "tree": {"node_budget": 16, "depth": 5, "width": 4, "children": 4},
            "cost_table": {"path": str(costs), "correct": False},
        }
        llm = LLM(
            str(target),
            dtype="float32",
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=4,
            block_size=32,
            enable_prefix_caching=False,
            gpu_memory_utilization=0.3,
            speculative_config={"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 16},
            additional_config={"smart": settings},
        )
        print(f"{len(prompts)} prompts of {len(min(prompts, key=len))} tokens and more", flush=True)
        for beside_prompts in ("draft", "weigh"):
            length = acceptance_length(llm, prompts, beside_prompts, args.tokens)
            print(f"{beside_prompts}: acceptance length {length:.3f}", flush=True)


if __name__ == "__main__":
    main()
