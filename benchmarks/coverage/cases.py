"""What is served: targets by kind of attention, drafters, and what requests ask for."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import assistant_zoo, block_zoo, latent_zoo, mtp_zoo, zoo
from tests.e2e import scenarios
from vllm_smart.demo_model import demo_model_paths

DTYPES = ("float32", "bfloat16")
NUM_TEXTS, NUM_TOKENS, NUM_PROMPT_TOKENS = 16, 48, 90
# Prompts are prefilled in parts, beside requests that decode; requests join and leave.
SIZES = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 256}
# Prices under which drafts of many lengths pay, and the drafter never rests.
SMART = {"name": "smart", "may_turn_off": False}
LARGEST = {"tree": scenarios.FIXED_TREE, "chain": {"name": "chain", "num_tokens": 12}}
SAMPLED = {"temperature": 0.8, "ignore_eos": True}
# Feature -> sampling parameters. "again" finds all prompts in the prefix cache, and what they were
# answered among the shared responses.
FEATURES: dict[str, dict[str, Any]] = {
    "greedy": scenarios.GREEDY,
    "again": scenarios.GREEDY,
    "sampled": SAMPLED,
    "penalties": {**SAMPLED, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    "grammar": scenarios.GRAMMAR,
}
PLAIN = "plain"
DRAFTERS = ("draft_model", "ngram")


@dataclass(frozen=True)
class Target:
    """A model to serve.

    Attributes:
        model: its name in one of the zoos of `tests`; "pair" is the shipped one.
        attention: what is special about it, for people.
        drafters: methods, "+ngram" for n-grams beside it.
        shape: what drafts must be there.
        arguments: of the engine.
        dtypes: that vLLM runs it in on CPUs.
    """

    model: str
    attention: str
    shape: str = "tree"
    drafters: tuple[str, ...] = DRAFTERS
    arguments: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = DTYPES


_FULL = (
    *("llama-multi-query", "llama-head-80", "qwen2", "qwen3", "qwen3-moe", "mixtral"),
    *("phi3", "olmo2", "smollm3", "glm4", "granite", "gemma", "stablelm", "starcoder2", "cohere"),
    *("nemotron", "gpt2", "opt", "falcon", "gpt-neox"),
)
# Those that a window has left are given away while requests run; chunks are as long.
_SMALL_BLOCKS = {"block_size": zoo.CHUNK}
# Prompts are not split, which would begin another chunk of vLLM's kernel there; no prefix cache.
_WHOLE_PROMPTS = {"max_num_batched_tokens": 2048, "enable_prefix_caching": False}
# vLLM's example saves prompts that are computed whole in files, and loads those that it knows.
_CONNECTED = {
    **_WHOLE_PROMPTS,
    "block_size": 32,  # it saves full ones alone
    "kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"},
}
_BLOCKS = ("dflash", "dspark", "dflash+ngram")
# vLLM's scheduler leaves room for a block beside what each request verifies.
_ROOM_FOR_BLOCKS = {"max_num_batched_tokens": 256}
# Not AMX's, where there are any: drafts have not been tried with these.
_LATENTS = {"attention_backend": "CPU_MLA"}
TARGETS: dict[str, Target] = {
    "pair": Target(
        "pair", "full", drafters=("eagle3", "eagle", "draft_model", "ngram", "eagle3+ngram")
    ),
    "llama": Target("llama", "full"),
    **{model: Target(model, "full", drafters=("draft_model",)) for model in _FULL},
    "glm4-moe": Target("glm4-moe-mtp", "full", drafters=("mtp",)),
    "mimo": Target("mimo", "full", drafters=("mtp", "mtp+ngram")),
    "ernie4-5": Target("ernie4-5", "full", drafters=("mtp",)),
    "hy-v3": Target("hy-v3", "full", drafters=("mtp",)),
    "exaone-moe": Target("exaone-moe", "windows", drafters=("mtp",)),
    "glm4-moe heads": Target(
        "glm4-moe-mtp-heads", "full, several heads", "chain", drafters=("mtp", "mtp+ngram")
    ),
    "exaone-moe heads": Target(
        "exaone-moe-heads", "windows, several heads", "chain", drafters=("mtp", "mtp+ngram")
    ),
    "mistral-window": Target("mistral-window", "windows", arguments=_SMALL_BLOCKS),
    "gemma2": Target("gemma2", "windows, soft caps", arguments=_SMALL_BLOCKS),
    "gemma3": Target("gemma3", "windows", arguments=_SMALL_BLOCKS),
    "cohere2": Target("cohere2", "windows", arguments=_SMALL_BLOCKS),
    "olmo3": Target("olmo3", "windows", arguments=_SMALL_BLOCKS),
    "gpt-oss": Target("gpt-oss", "windows and sinks", arguments=_SMALL_BLOCKS),
    "llama4": Target("llama4", "chunks", arguments=_SMALL_BLOCKS),
    "bloom": Target("bloom", "ALiBi"),
    "gemma4": Target(assistant_zoo.NAME, "windows", "chain", drafters=("mtp", "mtp+ngram")),
    "gemma4 by n-grams": Target(assistant_zoo.NAME, "windows", drafters=("ngram",)),
    "llama blocks": Target("llama-blocks", "full", drafters=_BLOCKS, arguments=_ROOM_FOR_BLOCKS),
    "mistral-window blocks": Target(
        "mistral-window-blocks",
        "windows",
        drafters=_BLOCKS,
        arguments=_ROOM_FOR_BLOCKS,
    ),
    "gpt-oss blocks": Target(
        "gpt-oss-blocks",
        "windows and sinks",
        drafters=_BLOCKS,
        arguments=_ROOM_FOR_BLOCKS,
    ),
    "gpt-oss blocks as chains": Target(
        "gpt-oss-blocks",
        "windows and sinks, chains asked for",
        "chain",
        drafters=("dflash",),
        arguments=_ROOM_FOR_BLOCKS,
    ),
    "qwen3-next": Target(
        "qwen3-next-mtp",
        "gated delta rules",
        "chain",
        drafters=("mtp", "mtp+ngram"),
        arguments=_WHOLE_PROMPTS,
        dtypes=("bfloat16",),
    ),
    "nemotron-h": Target(
        "nemotron-h", "Mamba2", "chain", drafters=("mtp", "mtp+ngram"), arguments=_WHOLE_PROMPTS
    ),
    "granite-hybrid": Target(
        "granite-hybrid", "Mamba2", "chain", drafters=("ngram",), arguments=_WHOLE_PROMPTS
    ),
    "deepseek-v2": Target("deepseek-v2", "MLA", "chain", arguments=_LATENTS),
    "deepseek-v3 eagle3": Target(
        latent_zoo.NAME, "MLA", "chain", drafters=("eagle3", "eagle3+ngram"), arguments=_LATENTS
    ),
    "deepseek-v3": Target(
        "deepseek-v3", "MLA", "chain", drafters=("mtp", "mtp+ngram"), arguments=_LATENTS
    ),
    "glm4-moe-lite": Target("glm4-moe-lite", "MLA", "chain", drafters=("mtp",), arguments=_LATENTS),
    "llama fp8 cache": Target(
        "llama", "full, fp8 cache", "chain", arguments={"kv_cache_dtype": "fp8_e4m3"}
    ),
    "llama with a KV connector": Target(
        "llama", "full, a KV connector", "chain", drafters=("ngram",), arguments=_CONNECTED
    ),
    "pair as chains": Target(
        "pair", "full, chains asked for", "chain", drafters=("eagle3", "eagle", "eagle3+ngram")
    ),
    "llama as chains": Target("llama", "full, chains asked for", "chain"),
    "gpt-oss as chains": Target("gpt-oss", "windows and sinks, chains asked for", "chain"),
}
# Refused: what is missing.
REFUSED = {
    "mistral4 by eagle": "narrow MLA: vLLM 0.32's kernel without AMX knows latents of 512 alone",
    "mamba2": "recurrent layers alone",
    "bailing by mtp": "recurrent layers other than gated delta rules and Mamba2",
    "inkling by mtp": "attention of its own: vLLM 0.32 has it for GPUs alone",
    "mimo-v2 by mtp": "values narrower than keys: vLLM 0.32 has kernels for GPUs alone",
}


def _params(feature: str, index: int) -> dict[str, Any]:
    params = {"max_tokens": NUM_TOKENS, **FEATURES[feature]}
    if params["temperature"] > 0:
        params["seed"] = 1000 + index
    return params


def _run(feature: str, **more: Any) -> dict[str, Any]:
    prompts = [prompt[: NUM_PROMPT_TOKENS - index] for index, prompt in enumerate(scenarios.prompts())]
    prompts = prompts[:NUM_TEXTS]
    params = [_params(feature, index) for index in range(len(prompts))]
    return {"name": feature, "prompts": prompts, "params": params, **more}


def _model(name: str, folder: Path) -> Path:
    if name == "pair":
        return demo_model_paths()["target"]
    if name == assistant_zoo.NAME:
        return assistant_zoo.tiny_gemma4(folder)
    if name == latent_zoo.NAME:
        return latent_zoo.tiny_target(folder)
    if name in block_zoo.MODELS:
        return block_zoo.tiny_target(name, folder)
    make = mtp_zoo.tiny_mtp_model if name in mtp_zoo.MODELS else zoo.tiny_model
    return make(name, folder)


def jobs(name: str, dtype: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Jobs of `tests.e2e.driver` by engine, of the target called `name`; plain vLLM's comes first.

    Args:
        folder: where models go.
    """
    target = TARGETS[name]
    is_pair = target.model == "pair"
    model = str(_model(target.model, folder))
    base = {"model": model, "dtype": dtype, "enforce_eager": True, "seed": 0, **SIZES}
    base |= target.arguments
    if "kv_transfer_config" in base:
        files = {"kv_connector_extra_config": {"shared_storage_path": str(folder / "prompts")}}
        base["kv_transfer_config"] = base["kv_transfer_config"] | files
    engines = {PLAIN: {"engine": base, "runs": [_run(feature) for feature in FEATURES]}}
    for method in target.drafters:
        arguments = scenarios.with_trees(method)
        settings = arguments["additional_config"]["smart"]
        if method == "draft_model" and not is_pair:
            settings["drafter"]["model"] = str(zoo.tiny_drafter(target.model, folder))
        if target.model == assistant_zoo.NAME and method != "ngram":
            settings["drafter"]["model"] = str(assistant_zoo.tiny_assistant(folder))
        if target.model == latent_zoo.NAME:
            settings["drafter"]["model"] = str(latent_zoo.tiny_head(folder))
        if target.model in block_zoo.MODELS:
            kind = method.removesuffix("+ngram")
            drafter = block_zoo.tiny_drafter(target.model, kind, folder)
            settings["drafter"]["model"] = str(drafter)
        if "ngram" in method:
            settings["ngram"] = {"shared": {"scope": "engine"}}
        if name.endswith("as chains"):
            settings["tree"] = {**settings["tree"], "shape": "chain"}
        settings["cost_table"] = {"path": "costs.json", "correct": False}
        settings["metrics"] = False  # engines of one process share its registry
        runs = [_run(feature, policy=SMART) for feature in FEATURES]
        runs.append({**_run("greedy", policy=LARGEST[target.shape]), "name": "largest"})
        engines[method] = {
            "engine": {**base, **arguments},
            "runs": runs,
            "files": {"costs.json": json.dumps(scenarios.costs())},
        }
    return engines
