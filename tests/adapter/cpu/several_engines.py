"""Runs engines one after the other in one process, and writes what each was and what it said.

    python -m tests.adapter.cpu.several_engines RESULT.json NAME...

A name is one of `ENGINES`, or "v2": plain decoding in an engine that was asked to be V2.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from vllm_smart.demo_model import demo_model_paths  # imports neither the plugin nor vLLM

V2 = "VLLM_USE_V2_MODEL_RUNNER"
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
TREES = {
    "speculative_config": {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 8},
    "additional_config": {
        "smart": {
            "drafter": {"method": "eagle3", "model": "demo:eagle3"},
            "policy": {"name": "fixed_tree", "num_nodes": 6, "depth": 3, "width": 2, "children": 3},
        }
    },
}
# Name -> (model of the zoo, None: the shipped one; engine arguments).
ENGINES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "plain": (None, {}),
    "hybrid": ("qwen3-next", {"dtype": "bfloat16"}),
    # vLLM by itself can start no other engine in a process in which n-grams have loaded numba.
    "ngram": (None, {"speculative_config": NGRAM}),
    "trees": (None, TREES),
}


def main(result: str, *names: str) -> None:
    reports = []
    for name in names:
        if name == "v2":
            os.environ[V2] = "1"
        model, arguments = ENGINES["plain" if name == "v2" else name]
        reports.append({"name": name, **_run(model, arguments, Path(result))})
        os.environ.pop(V2, None)
    Path(result).write_text(json.dumps(reports))


def _run(model: str | None, arguments: dict[str, Any], result: Path) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    path = demo_model_paths()["target"] if model is None else result.parent / model
    llm = LLM(
        str(path),
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        gpu_memory_utilization=0.3,
        **{"dtype": "float32", **arguments},
    )
    prompts = ["def read_lines(path):\n", "import os\nimport sys\nimport os\nimport"]
    params = [SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)]
    if arguments.get("speculative_config") != NGRAM:  # whose seeded samples vary from run to run
        params.append(SamplingParams(temperature=0.8, seed=3, max_tokens=24, ignore_eos=True))
    outputs = [llm.generate(prompts, each, use_tqdm=False) for each in params]
    report = llm.collective_rpc(_describe)[0]
    del llm
    cleanup_dist_env_and_memory()
    return {**report, "texts": [[o.outputs[0].text for o in of_params] for of_params in outputs]}


def _describe(worker: Any) -> dict[str, Any]:
    """What a plugin might have changed."""
    import vllm.config.vllm
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention import Attention
    from vllm.triton_utils import dispatcher, triton
    from vllm.v1.attention.backends import registry

    layers = get_layers_from_vllm_config(worker.vllm_config, Attention).values()
    runner = type(worker.model_runner)
    return {
        "worker": type(worker).__qualname__,
        "runner": f"{runner.__module__}.{runner.__qualname__}",
        "backends": sorted({layer.get_attn_backend().__qualname__ for layer in layers}),
        "kernels": sorted(dispatcher._registry),
        "overridden backends": sorted(map(str, registry._ATTN_OVERRIDES)),
        "triton": [triton.jit.__qualname__, hasattr(triton, "next_power_of_2")],
        "config has Triton": vllm.config.vllm.HAS_TRITON,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
