"""From the drafter's method to what speculates."""

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.drafter.block_speculator import TreeDFlashSpeculator, TreeDSparkSpeculator
from vllm_smart.adapter.drafter.drafting import TreeDrafting
from vllm_smart.adapter.drafter.heads_speculator import TreeHeadsSpeculator
from vllm_smart.adapter.drafter.ngram_speculator import NgramSpeculator
from vllm_smart.adapter.drafter.speculator import (
    TreeAssistantSpeculator,
    TreeDraftModelSpeculator,
    TreeEagleSpeculator,
    TreeMtpSpeculator,
    TreeSpeculator,
)
from vllm_smart.adapter.drafter.without_model import SpeculatorWithoutModel
from vllm_smart.config import SmartConfig

_WITH_MODELS: dict[str, type[TreeSpeculator]] = {
    "eagle": TreeEagleSpeculator,
    "eagle3": TreeEagleSpeculator,
    "draft_model": TreeDraftModelSpeculator,
    "mtp": TreeMtpSpeculator,
    "dflash": TreeDFlashSpeculator,
    "dspark": TreeDSparkSpeculator,
}


def make_speculator(
    vllm_config: VllmConfig, config: SmartConfig, device: torch.device, req_states: RequestState
) -> TreeSpeculator | SpeculatorWithoutModel:
    """The speculator for `config.drafter.method`."""
    if config.drafter.method == "ngram":
        return NgramSpeculator(vllm_config, config, device, req_states)
    if config.drafter.placement != "inline":
        from vllm_smart.adapter.overlap.settle_placement import settle_placement

        config = settle_placement(vllm_config, config)
    if config.drafter.placement == "process":
        from vllm_smart.adapter.overlap.speculator import RemoteSpeculator

        return RemoteSpeculator(vllm_config, config, device, req_states)
    cls = _WITH_MODELS[config.drafter.method]
    assert vllm_config.speculative_config is not None
    if vllm_config.speculative_config.use_gemma4_mtp():
        cls = TreeAssistantSpeculator
    elif vllm_config.speculative_config.use_multi_module_mtp():
        cls = TreeHeadsSpeculator
    speculator: Any = cls(vllm_config, device)
    speculator.drafting = TreeDrafting(speculator, config, req_states)
    return speculator
