"""vLLM 0.32, where it differs from 0.33. `versions` picks the file; both have the same names."""

from dataclasses import replace

import numpy as np
import torch
from vllm import envs
from vllm.config import VllmConfig
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

from vllm_smart.seams.seam import Seam, Where

UNTIL = (0, 33)

SEAMS = (
    Seam(
        "vllm.v1.worker.gpu.spec_decode.adaptive_verification:AdaptiveVerificationManager"
        ".reallocate_drafts",
        "replace",
        Where.GPU_WORKER,
        signature="(self, req_ids, idx_mapping) -> tuple[Tensor, Tensor, int]",
        until=UNTIL,
    ),
    Seam(
        "vllm.config:VllmConfig._validate_v2_model_runner",
        "rebind",
        Where.CPU_WORKER,
        signature="(self) -> None",
        uses=("HAS_TRITON",),
        until=UNTIL,
    ),
    Seam(
        "vllm.v1.core.kv_cache_utils:get_kv_cache_configs",
        "call",
        Where.CPU_WORKER,
        signature="(vllm_config, kv_cache_specs, available_memory) -> list[KVCacheConfig]",
        until=UNTIL,
    ),
)


def has_old_ray_executor() -> bool:
    """Whether Ray means vLLM's first executor for it, which cannot schedule ahead."""
    return not envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND


def reallocated(
    logits_start: torch.Tensor, query_start: torch.Tensor, num_drafts: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What the runner takes from `reallocate_drafts`.

    Args:
        logits_start: [num_reqs + 1] int32 first logits row of each request.
        query_start: its buffer of first query rows.
        num_drafts: draft rows of the step.
    """
    return logits_start, query_start, num_drafts


def num_masks(num_drafts: int, most_drafts: int) -> int:
    """Masks of a request with so many drafts, of `most_drafts`: one for each row."""
    return 1 + num_drafts


def masks_of(grammar: GrammarOutput, scheduled: SchedulerOutput, run: SchedulerOutput) -> GrammarOutput:
    """The masks of the rows that run, of which `scheduled` has left room for more drafts.

    Each request has as many masks as rows. Drafts of structured output are chains, so fewer of them are
    the first ones.

    Args:
        grammar: by the rows of `scheduled`.
        scheduled: as vLLM made it.
        run: the same, with no more drafts of each request.
    """
    room, drafts = scheduled.scheduled_spec_decode_tokens, run.scheduled_spec_decode_tokens
    requests = grammar.structured_output_request_ids
    counts = [len(drafts.get(request, ())) for request in requests]
    rows = np.array([1 + len(room.get(request, ())) for request in requests])
    first = np.cumsum(rows) - rows
    kept = [np.arange(begin, begin + 1 + count) for begin, count in zip(first, counts, strict=True)]
    acceptable = grammar.num_acceptable_drafts
    return replace(
        grammar,
        grammar_bitmask=grammar.grammar_bitmask[np.concatenate(kept)],
        num_acceptable_drafts=None if acceptable is None else list(map(min, acceptable, counts)),
    )


def kv_cache_of(
    vllm_config: VllmConfig, specs: dict[str, KVCacheSpec], memory_bytes: int
) -> KVCacheConfig:
    """The KV cache of one worker, of which `specs` are the layers.

    Args:
        memory_bytes: that it may take.
    """
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs

    return get_kv_cache_configs(vllm_config, [specs], [memory_bytes])[0]
