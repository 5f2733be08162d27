"""What a step's plan reads of the batch that vLLM runs."""

from typing import Protocol

import numpy as np
import torch


class StepBatch(Protocol):
    """As vLLM's `InputBatch`, whose fields these are; the table of seams lists them, too.

    `StepPlan.complete` rewrites the first five.
    """

    num_computed_tokens_np: np.ndarray  # [num_reqs] tokens before the step's rows
    num_draft_tokens_per_req: np.ndarray | None  # [num_reqs]; None without drafts
    num_scheduled_tokens: np.ndarray  # [num_reqs] rows
    query_start_loc_np: np.ndarray  # [>= num_reqs + 1] first row of each, then the number of rows
    cu_num_logits_np: np.ndarray  # [num_reqs + 1] first logits row of each, then their number
    req_ids: list[str]
    num_reqs: int
    num_tokens: int  # rows of all requests
    idx_mapping_np: np.ndarray  # [num_reqs] request-state slots
    prefill_len_np: np.ndarray  # [num_reqs] tokens that are known when the request comes
    has_prefill: bool
    # On the device.
    idx_mapping: torch.Tensor  # [num_reqs]
    cu_num_logits: torch.Tensor  # [num_reqs + 1]
    query_start_loc: torch.Tensor  # [>= num_reqs + 1]
    logits_indices: torch.Tensor  # [num_logits] rows that logits are computed of
    positions: torch.Tensor  # [>= num_tokens]
