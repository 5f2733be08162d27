"""Replicas of the demonstration's pair behind one OpenAI endpoint, in a cluster of Ray's.

`make serve-ray` starts it on this machine, with a pair that is made once, as large as pays here. In a
cluster that runs already, `--address auto` uses that. All but `settings` is as `ray.serve.llm` has it
for any model.
"""

import argparse
import os
import signal
import time
from pathlib import Path

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app
from rich.console import Console

from vllm_smart.demo.prepare import made, sized_once
from vllm_smart.demo_model import demo_model_paths


def llm_config(pair: dict[str, Path], dtype: str, num_replicas: int, threads: int) -> LLMConfig:
    """Replicas that speculate with trees.

    Args:
        pair: folders of the models, by kind.
        dtype: of their weights.
        num_replicas: as many engines, each with a copy of the models.
        threads: of each on CPUs.
    """
    drafter = {"method": "eagle3", "model": str(pair["eagle3"])}
    settings = {"drafter": drafter, "cost_table": {"ray": "auto"}}
    return LLMConfig(
        model_loading_config={"model_id": "demo", "model_source": str(pair["target"])},
        server_cls="vllm_smart.ray.server:SmartLLMServer",  # tells autoscaling policies what pays
        # Without these two Ray asks for GPUs. On GPUs leave both out.
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": 1}]},
        engine_kwargs={
            "speculative_config": {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 32},
            "additional_config": {"smart": settings},
            "dtype": dtype,
            "enforce_eager": True,
            "max_model_len": 1024,
            "max_num_seqs": 8,
            "gpu_memory_utilization": 0.3,
        },
        deployment_config={
            "max_ongoing_requests": 32,
            # As many at least as at most: nothing scales, on one machine.
            "autoscaling_config": {
                "min_replicas": num_replicas,
                "max_replicas": num_replicas,
                "metrics_interval_s": 2.0,
            },
            "ray_actor_options": {"num_cpus": 0.1},
        },
        runtime_env={
            "env_vars": {
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": str(threads),
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            }
        },
    )


def main() -> None:
    """Start a cluster here, or join one, and serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS", "local"),  # a job is given the variable
        help="of a running cluster; without it one is started here",
    )
    parser.add_argument("--port", type=int, default=8000, help="of the OpenAI endpoint, on loopback")
    parser.add_argument("--metrics-port", type=int, default=8080, help="of Ray's metrics")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="the pair as shipped: drafts do not pay")
    given = parser.parse_args()

    console = Console()
    if given.small:
        pair, dtype = demo_model_paths(), "auto"
    else:
        sized = sized_once(anew=False, console=console)
        pair, dtype = made(sized, console), sized.shape.dtype
    cores = os.cpu_count() or 1
    of_our_own = {
        "num_cpus": max(cores, 2 * given.replicas),
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_metrics_export_port": given.metrics_port,
    }
    ray.init(given.address, **(of_our_own if given.address == "local" else {}))
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    config = llm_config(pair, dtype, given.replicas, max(1, cores // given.replicas))
    serve.run(build_openai_app({"llm_configs": [config]}), name="llm", route_prefix="/")
    print(f"Ready: http://127.0.0.1:{given.port}/v1, {given.replicas} replicas of 'demo'.", flush=True)
    print(f"Metrics of all: http://127.0.0.1:{given.metrics_port}/metrics", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ^C
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
