"""Launches of the kernels that vLLM 0.33 calls otherwise than 0.32."""

from dataclasses import replace
from functools import wraps

import numpy as np
import torch

from tests.adapter.cpu import drafting_cases, input_cases, verification_cases
from tests.adapter.cpu.launches import Batch, BuildLaunch, Launch, integers


def gather_block_tables(rng: np.random.Generator, *, masked: bool = False) -> Launch:
    launch = input_cases.gather_block_tables(rng)
    return launch.taking(
        "BLOCK_SIZE",
        num_computed_tokens=integers(rng, 0, 120, Batch.max_num_reqs),
        sliding_window_reach=torch.tensor([0, 35], dtype=torch.int32),
        block_sizes=torch.tensor([8, 16], dtype=torch.int32),
        MASK_SLIDING_WINDOW=masked,
    )


def gather_block_tables_of_sliding_windows(rng: np.random.Generator) -> Launch:
    return gather_block_tables(rng, masked=True)


def _with_padding(build: BuildLaunch) -> BuildLaunch:
    @wraps(build)
    def built(rng: np.random.Generator) -> Launch:
        launch = build(rng)
        is_padding = torch.zeros(len(launch.arguments["out_input_ids"]), dtype=torch.bool)
        return launch.taking("out_query_start_loc", out_is_padding=is_padding)

    return built


def _without_drafts(build: BuildLaunch) -> BuildLaunch:
    @wraps(build)
    def built(rng: np.random.Generator) -> Launch:
        launch = build(rng)
        arguments = {
            **launch.arguments,
            "draft_tokens": None,
            "draft_tokens_out": None,
            "num_draft_tokens": 0,
        }
        return replace(launch, arguments=arguments)

    return built


def post_update_with_drafts(rng: np.random.Generator) -> Launch:
    launch = input_cases.post_update(rng)
    num_reqs, num_drafts = len(launch.arguments["idx_mapping"]), Batch.num_steps
    drafts = {
        "draft_tokens": integers(rng, 0, 999, (num_reqs, num_drafts), torch.int64),
        "draft_tokens_out": integers(rng, 0, 999, (Batch.max_num_reqs, num_drafts), torch.int64),
        "num_draft_tokens": num_drafts,
    }
    return replace(launch, arguments={**launch.arguments, **drafts})


def _by_num_logits(build: BuildLaunch) -> BuildLaunch:
    @wraps(build)
    def built(rng: np.random.Generator) -> Launch:
        launch = build(rng)
        arguments = {
            {"num_speculative_steps": "num_logits"}.get(name, name): value
            for name, value in launch.arguments.items()
        }
        arguments["num_logits"] = len(arguments["target_logits"])
        return replace(launch, arguments=arguments)

    return built


def _without_fly(build: BuildLaunch) -> BuildLaunch:
    @wraps(build)
    def built(rng: np.random.Generator) -> Launch:
        launch = build(rng).taking("vocab_num_blocks", fly_entropy=None, fly_entropy_threshold=0.3)
        return replace(launch, arguments={**launch.arguments, "FLY_WINDOW_SIZE": 0})

    return built


_POST_UPDATE = "input_batch._post_update_kernel"
_UTILS = "spec_decode.rejection_sampler_utils"
_STATS, _REJECTION = f"{_UTILS}._compute_local_logits_stats_kernel", f"{_UTILS}._rejection_kernel"
_BLOCKS = "spec_decode.dflash.speculator._prepare_dflash_inputs_kernel"

CASES: dict[str, tuple[BuildLaunch, ...]] = {
    "block_table._gather_block_tables_kernel": (
        gather_block_tables,
        gather_block_tables_of_sliding_windows,
    ),
    _POST_UPDATE: (
        *map(_without_drafts, input_cases.CASES[_POST_UPDATE]),
        post_update_with_drafts,
    ),
    _BLOCKS: tuple(map(_with_padding, drafting_cases.CASES[_BLOCKS])),
    _STATS: tuple(map(_by_num_logits, verification_cases.CASES[_STATS])),
    _REJECTION: tuple(map(_without_fly, verification_cases.CASES[_REJECTION])),
}
