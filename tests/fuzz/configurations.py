"""Random engine configurations: a valid one, with a few settings changed at random."""

from pathlib import Path
from random import Random
from typing import Any

from tests import zoo
from tests.e2e.scenarios import METHODS, NGRAM_METHODS, costs
from vllm_smart.demo_model import demo_model_paths

# What is known to be served comes up as often as all the rest.
SERVED = (
    "pair",
    "pair",
    "pair",
    "llama",
    "qwen2",
    "qwen3",
    "mixtral",
    "phi3",
    "olmo2",
    "gemma",
    "gpt2",
)

# vLLM's own flags, a few values of each; most are valid in themselves.
FLAGS: dict[str, tuple[Any, ...]] = {
    "dtype": ("float32", "bfloat16", "float16"),
    "max_num_seqs": (1, 2, 5, 16),
    "max_num_batched_tokens": (16, 33, 64, 512),
    "max_model_len": (32, 128, 200, 1024),
    "block_size": (16, 32, 64, 128),
    "num_gpu_blocks_override": (9, 12, 40),
    "enable_prefix_caching": (True, False),
    "enable_chunked_prefill": (True, False),
    "long_prefill_token_threshold": (16,),
    "max_num_scheduled_tokens": (32, 400),
    "scheduling_policy": ("fcfs", "priority"),
    "prefill_schedule_interval": (2,),
    "scheduler_reserve_full_isl": (True, False),
    "async_scheduling": (True, False),
    "scheduler_cls": ("vllm.v1.core.sched.scheduler.Scheduler",),
    "worker_cls": ("vllm.v1.worker.cpu_worker.CPUWorker",),
    "disable_sliding_window": (True,),
    "disable_hybrid_kv_cache_manager": (True, False),
    "disable_cascade_attn": (True,),
    "kv_sharing_fast_prefill": (True,),
    "kv_cache_dtype": ("fp8", "fp8_e5m2", "bfloat16", "float16"),
    "quantization": ("fp8", "experts_int8"),
    "attention_backend": ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION"),
    "model_impl": ("transformers", "vllm"),
    "runner": ("generate", "pooling"),
    "tensor_parallel_size": (2,),
    "pipeline_parallel_size": (2,),
    "prefill_context_parallel_size": (2,),
    "decode_context_parallel_size": (2,),
    "data_parallel_size": (2,),
    "enable_expert_parallel": (True,),
    "enable_dbo": (True,),
    "enable_batch_sharded_sampling": (True,),
    "enable_eplb": (True,),
    "enable_lora": (True,),
    "enable_prompt_embeds": (True,),
    "enable_sleep_mode": (True,),
    "skip_tokenizer_init": (True,),
    "logprobs_mode": ("raw_logits", "processed_logits", "processed_logprobs"),
    "max_logprobs": (0, 2, -1),
    "return_sampling_mask": (True,),
    "enable_trace_replay": (True,),
    "enable_return_routed_experts": (True,),
    "structured_outputs_config": ({"backend": "guidance"}, {"backend": "outlines"}),
    "reasoning_parser": ("deepseek_r1",),
    "generation_config": ("vllm",),
    "override_generation_config": ({"temperature": 0.5, "top_k": 7},),
    "kv_transfer_config": ({"kv_connector": "ExampleConnector", "kv_role": "kv_both"},),
    "kv_offloading_size": (0.1,),
    "watermark_config": ({"algorithm": "gumbel", "key": 3},),
    "cpu_offload_gb": (0.1,),
    "performance_mode": ("throughput", "interactivity"),
    "optimization_level": (0, 1),
    "stream_interval": (3,),
    "seed": (1,),
    "distributed_executor_backend": ("uni", "mp", "ray"),
}

# Beside ours in `--speculative-config`, and under `drafter.options`.
SPECULATIVE: dict[str, tuple[Any, ...]] = {
    "method": ("eagle", "custom_class", "ngram"),
    "num_speculative_tokens": (1, 2, 40, 0, -1, 2000),
    "draft_tensor_parallel_size": (1, 2),
}
OPTIONS: dict[str, tuple[Any, ...]] = {
    "parallel_drafting": (True, False),
    "draft_tensor_parallel_size": (1, 2),
    "quantization": ("fp8", None),
    "max_model_len": (16, 64, 4096),
    "enforce_eager": (True, False),
    "disable_padded_drafter_batch": (True,),
    "disable_eagle_block_drop": (True,),
    "use_local_argmax_reduction": (True,),
    "use_heterogeneous_vocab": (True,),
    "prompt_lookup_max": (3,),
    "num_speculative_tokens": (3,),
    "num_speculative_tokens_per_batch_size": ([(1, 4, 3)],),
    "rejection_sample_method": ("standard", "block", "synthetic"),
    "synthetic_acceptance_length": (1.5,),
    "enable_adaptive_verification": (True, False),
    "draft_sample_method": ("probabilistic", "greedy", "gumbel"),
    "attention_backend": ("FLASH_ATTN", "CPU_ATTN"),
    "kv_cache_dtype": ("fp8",),
    "method": ("eagle3",),
    "model": ("nowhere",),
    "nonsense": (1,),
}

# Our own settings, by section.
SMART: dict[str, tuple[Any, ...]] = {
    "policy": (
        {"name": "smart"},
        {"name": "smart", "may_turn_off": False, "horizon": "long_run"},
        {"name": "smart", "objective": "latency", "share": "equal"},
        {"name": "smart", "objective": {"tpot_ms": 5.0}, "probe_every": 2},
        {"name": "paper", "device_budget": 6},
        {"name": "first_drop"},
        {"name": "fixed_tree", "num_nodes": 14, "depth": 7, "width": 3, "children": 9},
        {"name": "fixed_tree"},
        {"name": "chain", "num_tokens": 3},
        {"name": "chain", "num_tokens": 99},
        {"name": "off"},
        {"name": "best"},
        {"name": "chain", "num_nodes": 2},
    ),
    "tree": (
        {"depth": 1, "width": 1, "children": 16},
        {"depth": 12, "width": 2},
        {"node_budget": 4},
        {"node_budget": 500},
        {"children": 17},
        {"width": 0},
    ),
    "drafter": (
        {"method": "eagle", "model": "demo:eagle3"},
        {"method": "draft_model", "model": "demo:target"},
        {"method": "draft_model", "model": "./nowhere"},
        {"method": "ngram", "model": "demo:draft"},
        {"method": "eagle3"},
    ),
    "acceptance": ({"calibrate": False}, {"per_request": False}, {"window": 3}),
    "hot_reload": (False, "no"),
    "metrics": (False,),
    "nonsense": (1,),
}
SHARES = (("flags", 6), ("smart", 3), ("options", 2), ("speculative", 1))


def random_configuration(random: Random) -> dict[str, Any]:
    """A configuration as plain data; `engine_arguments` makes it concrete."""
    model = random.choice(SERVED if random.random() < 0.5 else sorted(zoo.MODELS))
    changes: dict[str, dict[str, Any]] = {kind: {} for kind, _ in SHARES}
    spaces = {"flags": FLAGS, "smart": SMART, "options": OPTIONS, "speculative": SPECULATIVE}
    kinds, weights = zip(*SHARES, strict=True)
    for kind in random.choices(kinds, weights, k=random.choice((0, 1, 1, 2, 2, 3, 4))):
        key = random.choice(sorted(spaces[kind]))
        changes[kind][key] = random.choice(spaces[kind][key])
    method = random.choice((*METHODS, *NGRAM_METHODS) if model == "pair" else ("draft_model", "ngram"))
    tree = {"node_budget": 14, "depth": 5, "width": 3, "children": 3}
    fixed = {"name": "fixed_tree", "num_nodes": 12, "depth": 5, "width": 4, "children": 4}
    policy = fixed if random.random() < 0.6 else {"name": "smart", "may_turn_off": False}
    return {"model": model, "method": method, "tree": tree, "policy": policy, **changes}


def engine_arguments(configuration: dict[str, Any], folder: Path, plain: bool) -> dict[str, Any]:
    """LLM arguments of a configuration.

    Args:
        configuration: of `random_configuration`.
        folder: where checkpoints and the cost table lie.
        plain: the same engine without speculation.
    """
    name, method = configuration["model"], configuration["method"]
    pair = demo_model_paths()
    target = pair["target"] if name == "pair" else zoo.tiny_model(name, folder)
    arguments: dict[str, Any] = {
        "model": str(target),
        "dtype": "float32",
        "enforce_eager": True,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 128,
        "max_model_len": 256,
        "kv_cache_memory_bytes": 64 << 20,
        "max_logprobs": 20,
        "seed": 0,
        **configuration["flags"],
    }
    if plain:
        return arguments
    method, _, ngram = method.partition("+")
    drafter: dict[str, Any] = {"method": method}
    if method != "ngram" and name == "pair":
        drafter["model"] = f"demo:{'draft' if method == 'draft_model' else method}"
    elif method != "ngram":
        drafter["model"] = str(zoo.tiny_drafter(name, folder))
    smart = {
        "drafter": drafter,
        **({"ngram": {"max_nodes": 12}} if ngram else {}),
        "tree": configuration["tree"],
        "policy": configuration["policy"],
        "cost_table": {"path": str(cost_table(folder)), "correct": False},
        **configuration["smart"],
    }
    if configuration["options"]:
        smart["drafter"] = {**smart["drafter"], "options": configuration["options"]}
    speculative = {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": 16}
    speculative.update(configuration["speculative"])
    return {
        **arguments,
        "speculative_config": speculative,
        "additional_config": {"smart": smart},
    }


def cost_table(folder: Path) -> Path:
    """A stored cost table under which trees pay, so that no engine needs to time itself."""
    import json

    path = folder / "costs.json"
    if not path.exists():
        path.write_text(json.dumps(costs()))
    return path
