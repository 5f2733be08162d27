"""What vLLM 0.33 calls and checks otherwise than 0.32, which the other files are written for."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from vllm_smart.kernels.cpu.launch import array_at, compiled_kernel
from vllm_smart.mrv2_cpu import (
    kernels_block_drafter,
    kernels_block_table,
    kernels_input_batch,
    kernels_rejection,
    kernels_sampling,
)
from vllm_smart.mrv2_cpu.launch import taking


def open_gates(asks: Callable[[Any], bool]) -> None:
    """Let workers build Model Runner V2: 0.33 wants Triton there, no longer in the configuration.

    Idempotent.

    Args:
        asks: whether the engine of a `VllmConfig` asks for V2 on this CPU.
    """
    from vllm.v1.worker.gpu_worker import Worker

    from vllm_smart.mrv2_cpu.host import as_with_triton

    stock = Worker.__init__
    if hasattr(stock, "__wrapped__"):
        return
    with_triton = as_with_triton(stock)

    @functools.wraps(stock)
    def __init__(self: Worker, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        init = with_triton if asks(vllm_config) else stock
        init(self, vllm_config, *args, **kwargs)

    Worker.__init__ = __init__


@taking(
    kernels_block_table._gather_block_tables_kernel,
    num_reqs=(
        "num_reqs",
        "num_computed_tokens",  # [max_num_reqs]
        "sliding_window_reach",  # [num_groups] tokens before a step's first that are read; 0: all
        "block_sizes",  # [num_groups]
        "MASK_SLIDING_WINDOW",
    ),
)
def _gather_block_tables_kernel(*args: Any, MASK_SLIDING_WINDOW: bool, **constexprs: Any) -> None:
    """Copy block tables; blocks that no query of the step can reach may be others' by now."""
    *stock, num_computed_tokens, reach, block_sizes = args
    kernels_block_table._gather_block_tables_kernel(*stock, **constexprs)
    if MASK_SLIDING_WINDOW:
        idx_mapping, _, targets, strides, num_blocks = stock[:5]
        _clear_unreachable(
            idx_mapping, targets, strides, num_blocks, num_computed_tokens, reach, block_sizes
        )


@compiled_kernel
def _clear_unreachable(
    idx_mapping, targets, strides, num_blocks, num_computed_tokens, reach, block_sizes
):
    for group in range(len(targets)):
        if reach[group] <= 0:
            continue
        shape = (len(idx_mapping), strides[group])
        target = array_at(targets[group], shape, np.int32)
        for row in range(len(idx_mapping)):
            req = idx_mapping[row]
            before = max(num_computed_tokens[req] - reach[group], 0)
            target[row, : min(before // block_sizes[group], num_blocks[group, req])] = 0


@taking(
    kernels_input_batch._post_update_kernel,
    total_len=(
        "total_len",
        "draft_tokens",  # [num_reqs, num_draft_tokens], or None
        "draft_tokens_out",  # [max_num_reqs, num_draft_tokens]
        "num_draft_tokens",
    ),
)
def _post_update_kernel(*args: Any, num_warps: int = 1) -> None:
    """Append sampled tokens, and keep drafts that came from another rank."""
    *stock, draft_tokens, draft_tokens_out, _num_draft_tokens = args
    kernels_input_batch._post_update_kernel(*stock, num_warps=num_warps)
    if draft_tokens is not None:
        idx_mapping = stock[0]
        rows = idx_mapping >= 0
        draft_tokens_out[idx_mapping[rows]] = draft_tokens[rows]


@taking(kernels_sampling.gumbel_sample, step_in_seed=())
def _gumbel_sample_kernel(*args: Any, **constexprs: Any) -> None:
    """Draw tokens; drafts of different steps draw different noise."""
    kernels_sampling.gumbel_sample(*args, **constexprs, step_in_seed=True)


@taking(kernels_rejection._compute_local_logits_stats_kernel, num_speculative_steps=("num_logits",))
def _compute_local_logits_stats_kernel(*args: Any, **constexprs: Any) -> None:
    kernels_rejection._compute_local_logits_stats_kernel(*args, **constexprs)


@taking(
    kernels_rejection._rejection_kernel,
    vocab_num_blocks=("fly_entropy", "fly_entropy_threshold", "vocab_num_blocks"),
    USE_BLOCK_VERIFICATION=("USE_BLOCK_VERIFICATION", "FLY_WINDOW_SIZE"),
)
def _rejection_kernel(*args: Any, FLY_WINDOW_SIZE: int, **constexprs: Any) -> None:
    if FLY_WINDOW_SIZE:
        raise NotImplementedError("rejection_sample_method 'fly' is not supported on CPU")
    *stock, _entropy, _threshold, vocab_num_blocks = args
    kernels_rejection._rejection_kernel(*stock, vocab_num_blocks, **constexprs)


@taking(
    kernels_block_drafter._prepare_dflash_inputs_kernel,
    out_query_positions=("out_query_positions", "out_is_padding"),  # [max_num_tokens] bool
)
def _prepare_dflash_inputs_kernel(
    out_input_ids: Any, out_query_positions: Any, out_is_padding: Any, *rest: Any, **constexprs: Any
) -> None:
    """Prepare blocks, and say which rows belong to none."""
    kernels_block_drafter._prepare_dflash_inputs_kernel(
        out_input_ids, out_query_positions, *rest, **constexprs
    )
    idx_mapping, num_query_per_req, max_num_tokens = rest[12], rest[23], rest[26]
    num_rows = len(idx_mapping) * num_query_per_req
    out_is_padding[:num_rows] = False
    for out, value in ((out_input_ids, 0), (out_query_positions, 0), (out_is_padding, True)):
        out[num_rows:max_num_tokens] = value


# As in `registry`: vLLM module -> functions named like its kernels
KERNELS = {
    "block_table": (_gather_block_tables_kernel,),
    "input_batch": (_post_update_kernel,),
    "sample.gumbel": (_gumbel_sample_kernel,),
    "spec_decode.dflash.speculator": (_prepare_dflash_inputs_kernel,),
    "spec_decode.rejection_sampler_utils": (_compute_local_logits_stats_kernel, _rejection_kernel),
}
