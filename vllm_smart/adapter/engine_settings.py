"""How our settings travel from the front end to vLLM's workers."""

import hashlib
import json
from collections import UserDict
from pathlib import Path
from typing import Any, Literal

import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger

from vllm_smart.config import SmartConfig
from vllm_smart.seams.host import is_cpu, runs_on_triton

logger = init_logger("vllm.smart")

SETTINGS = "smart"
SOURCE = "smart_source"  # the YAML that the settings were read from, if they were
COUNTERS = "smart_counters"  # where the engine's ranks count, if anybody reads it
PAGE = "smart_page"  # whether the server has our page
CLUSTER = "smart_cluster"  # address of the Ray cluster around the front end, if tables are shared there
_OURS = (SETTINGS, SOURCE, COUNTERS, PAGE, CLUSTER)


class AdditionalConfig(UserDict[str, Any]):
    """vLLM's additional config, with our resolved settings in it.

    vLLM compiles a model anew wherever its configuration has another hash, and of a dict it hashes
    every entry. Of ours, compiled code depends on whether attention has trees, and on nothing else: an
    edit of a policy must not cost a compilation. Code for CPUs depends on the CPU, and machines share
    folders of caches.
    """

    def compute_hash(self) -> str:
        """Of everything but our settings, of whose attention runs, and of what a CPU can do.

        vLLM leaves out the latter two. Our attention writes the KV cache, too, which compiled code does
        for vLLM's.
        """
        hashed = {name: value for name, value in self.items() if name not in _OURS}
        hashed["shape"] = self.get(SETTINGS, {}).get("tree", {}).get("shape")
        if is_cpu():
            abilities = torch.cpu.get_capabilities()
            hashed["cpu"] = sorted(name for name, has_it in abilities.items() if has_it is True)
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def has_trees(vllm_config: VllmConfig) -> bool:
    """Whether the engine of `vllm_config` named us."""
    return isinstance(vllm_config.additional_config, AdditionalConfig)


def smart_config(vllm_config: VllmConfig) -> SmartConfig | None:
    """The settings that the front end resolved, or None where trees are not in use."""
    if not has_trees(vllm_config):
        return None
    return SmartConfig.model_validate(vllm_config.additional_config[SETTINGS])


def has_tree_attention(vllm_config: VllmConfig) -> bool:
    """Whether attention is ours. Chains do without on CPUs: each row runs as if it decoded alone."""
    config = smart_config(vllm_config)
    assert config is not None
    return config.tree.shape == "tree" or runs_on_triton()


def decide_shape(vllm_config: VllmConfig, why_only_chains: str | None) -> None:
    """Settle in the front end whether drafts are trees or chains; see `SmartConfig.resolve_shape`."""
    config = smart_config(vllm_config)
    assert config is not None
    resolved = config.resolve_shape(why_only_chains)
    vllm_config.additional_config[SETTINGS] = resolved.model_dump(mode="json")
    if resolved.tree.shape == "chain":
        why = f": trees do not work with {why_only_chains}" if why_only_chains is not None else ""
        logger.info("vllm_smart: drafts are chains%s.", why)


def decide_placement(
    vllm_config: VllmConfig, placement: Literal["inline", "process"], why: str
) -> SmartConfig:
    """Settle where the drafter of `auto` runs, and say so; the settings from now on."""
    config = smart_config(vllm_config)
    assert config is not None
    decided = config.with_placement(placement)
    vllm_config.additional_config[SETTINGS] = decided.model_dump(mode="json")
    logger.info("vllm_smart: drafter.placement is %s: %s.", placement, why)
    return decided


def let_whole_prompts_in(vllm_config: VllmConfig) -> None:
    """Let the scheduler run prompts as long as the model's where vLLM runs them whole.

    With latent attention on CPUs it splits none, and raises the tokens of a batch to the longest, but
    with drafts its scheduler goes by what they were before: a longer prompt would wait for ever.
    """
    scheduler = vllm_config.scheduler_config
    if scheduler.max_num_scheduled_tokens is not None and not scheduler.enable_chunked_prefill:
        scheduler.max_num_scheduled_tokens = scheduler.max_num_batched_tokens


def settings_source(vllm_config: VllmConfig) -> Path | None:
    """The YAML that the settings were read from, None where they were given inline."""
    source = vllm_config.additional_config.get(SOURCE) if has_trees(vllm_config) else None
    return Path(source) if source is not None else None


def cluster_address(vllm_config: VllmConfig) -> str | None:
    """Of the Ray cluster that `cost_table.ray` names; None where tables are not shared in one."""
    config = smart_config(vllm_config)
    assert config is not None
    named: str | None = config.cost_table.ray
    return vllm_config.additional_config[CLUSTER] if named == "auto" else named


def counters_prefix(vllm_config: VllmConfig) -> str | None:
    """Where the engine's ranks count (`reports.shared`); None where nobody reads it."""
    prefix: str | None = None
    if has_trees(vllm_config):
        prefix = vllm_config.additional_config.get(COUNTERS)
    return prefix


def has_page(vllm_config: VllmConfig) -> bool:
    """Whether the engine's server has our page, on which somebody may look at trees."""
    return has_trees(vllm_config) and PAGE in vllm_config.additional_config
