"""vLLM 0.33, where it differs from 0.32. `versions` picks the file; both have the same names."""

from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

from vllm_smart.seams.seam import Seam, Where

SINCE = (0, 33)

SEAMS = (
    Seam(
        "vllm.v1.worker.gpu.spec_decode.adaptive_verification:AdaptiveVerificationManager"
        ".reallocate_drafts",
        "replace",
        Where.GPU_WORKER,
        signature="(self, req_ids, idx_mapping)"
        " -> tuple[Tensor, Tensor, int, AdmittedDraftCounts | None]",
        since=SINCE,
    ),
    Seam(
        "vllm.v1.worker.gpu_worker:Worker.__init__",
        "rebind",
        Where.CPU_WORKER,
        signature="(self, vllm_config, ...)",
        uses=("HAS_TRITON",),
        since=SINCE,
    ),
    Seam(
        "vllm.v1.core.kv_cache_planning:get_kv_cache_configs",
        "call",
        Where.CPU_WORKER,
        signature="(vllm_config, kv_cache_specs, available_memory, global_kv_cache_groups)"
        " -> list[KVCacheConfig]",
        since=SINCE,
    ),
    Seam(
        "vllm.v1.core.kv_cache_planning:get_global_kv_cache_groups",
        "call",
        Where.CPU_WORKER,
        signature="(vllm_config, kv_cache_specs) -> list[KVCacheGroupSpec]",
        since=SINCE,
    ),
    # Blocks of masks of one width; see `masks_of`.
    Seam(
        "vllm.v1.worker.gpu.structured_outputs:StructuredOutputsWorker.apply_grammar_bitmask",
        "read",
        Where.WORKER,
        uses=("mask_stride",),
        since=SINCE,
    ),
)


def has_old_ray_executor() -> bool:
    """False: there is but one for Ray."""
    return False


def reallocated(
    logits_start: torch.Tensor, query_start: torch.Tensor, num_drafts: int
) -> tuple[torch.Tensor, torch.Tensor, int, None]:
    """What the runner takes from `reallocate_drafts`.

    The fourth are each request's drafts, on their way to the host for batch-sharded sampling, which is
    refused.

    Args:
        logits_start: [num_reqs + 1] int32 first logits row of each request.
        query_start: its buffer of first query rows.
        num_drafts: draft rows of the step.
    """
    return logits_start, query_start, num_drafts, None


def num_masks(num_drafts: int, most_drafts: int) -> int:
    """Masks of a request with so many drafts, of `most_drafts`: one for each row that there may be."""
    return 1 + most_drafts


def masks_of(grammar: GrammarOutput, scheduled: SchedulerOutput, run: SchedulerOutput) -> GrammarOutput:
    """The masks of a step that runs fewer drafts than `scheduled` has left room for.

    Each request has one mask for every draft that there may be, and vLLM skips those without a row.
    Drafts of structured output are chains, so fewer of them are the first ones.

    Args:
        grammar: of `scheduled`.
        scheduled: as vLLM made it.
        run: the same, with no more drafts of each request.
    """
    drafts, acceptable = run.scheduled_spec_decode_tokens, grammar.num_acceptable_drafts
    if acceptable is None:
        return grammar
    counts = [len(drafts.get(request, ())) for request in grammar.structured_output_request_ids]
    return replace(grammar, num_acceptable_drafts=list(map(min, acceptable, counts)))


def kv_cache_of(
    vllm_config: VllmConfig, specs: dict[str, KVCacheSpec], memory_bytes: int
) -> KVCacheConfig:
    """The KV cache of one worker, of which `specs` are the layers.

    Args:
        memory_bytes: that it may take.
    """
    planning: Any = import_module("vllm.v1.core.kv_cache_planning")  # 0.32 has none
    groups = planning.get_global_kv_cache_groups(vllm_config, [specs])
    config: KVCacheConfig
    (config,) = planning.get_kv_cache_configs(vllm_config, [specs], [memory_bytes], groups)
    return config
