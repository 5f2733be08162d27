"""Many prompts at once through Ray Data: `python examples/ray_batch.py`.

In a cluster that runs already: `ray job submit -- python PATH/ray_batch.py`.
Batches are kept full, where trees pay least: expect "never slower" rather than faster, and set
`max_num_seqs` near what `vllm-smart explain TABLE --knee 1.1` prints.
"""

import os

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from vllm_smart.demo_model import demo_model_paths

PROMPTS = [f"def function_{number}(values):\n" for number in range(16)]


def config() -> vLLMEngineProcessorConfig:
    """One engine on CPUs. On GPUs leave out `accelerator_type` and `placement_group_config`."""
    return vLLMEngineProcessorConfig(
        model_source=str(demo_model_paths()["target"]),
        accelerator_type=None,
        placement_group_config={"bundles": [{"CPU": 1}]},
        concurrency=1,
        batch_size=8,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        engine_kwargs={
            "speculative_config": {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 32},
            "additional_config": {"smart": {"drafter": {"method": "eagle3", "model": "demo:eagle3"}}},
            "distributed_executor_backend": "mp",
            "enforce_eager": True,
            "max_model_len": 1024,
            "max_num_seqs": 8,
            "gpu_memory_utilization": 0.3,
        },
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}},
    )


def main() -> None:
    """Continue all prompts and print them."""
    address = os.environ.get("RAY_ADDRESS", "local")  # a job is given the variable
    of_our_own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(address, **(of_our_own if address == "local" else {}))
    sampling = {"max_tokens": 32, "temperature": 0.0}
    processor = build_processor(
        config(),
        preprocess=lambda row: {"prompt": row["prompt"], "sampling_params": sampling},
        postprocess=lambda row: {"prompt": row["prompt"], "text": row["generated_text"]},
    )
    for row in processor(ray.data.from_items([{"prompt": prompt} for prompt in PROMPTS])).take_all():
        print(repr(row["prompt"] + row["text"]))


if __name__ == "__main__":
    main()
