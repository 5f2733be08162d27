"""The walk through trees on a GPU: one launch, and no waiting for what it finds."""

import torch

from vllm_smart.kernels.walk.gpu import walk_trees
from vllm_smart.step.plan import StepPlan
from vllm_smart.step.walk import NEVER_SAMPLED, Walk


def walk_plan(
    plan: StepPlan,
    sampled: torch.Tensor,
    row_start: torch.Tensor,
    invalid_drafts: torch.Tensor | None,
) -> Walk:
    """Follow the target's samples through the trees of `plan`.

    Args:
        plan: of the batch, whose rows are arranged.
        sampled: [num_rows] int64, the target's token after each node, requests in batch order.
        row_start: [num_reqs + 1] int32, first row of each request, then the number of rows.
        invalid_drafts: [num_rows] bool, drafts that a grammar forbids; None = none.
    """
    assert plan.nodes is not None
    parent, token = plan.nodes.parent, plan.nodes.token
    num_reqs, max_nodes = parent.shape
    if invalid_drafts is not None:
        row = row_start[:-1, None] + torch.arange(max_nodes, device=sampled.device)
        # Columns beyond a tree read another's rows, and are not read themselves.
        is_invalid = invalid_drafts[row.clamp(max=len(invalid_drafts) - 1)]
        token = token.masked_fill(is_invalid, NEVER_SAMPLED)
    path = torch.empty_like(parent)
    num_accepted = parent.new_empty(num_reqs)
    emitted = torch.empty_like(token)
    walk_trees(parent, token, row_start, sampled, path, num_accepted, emitted)
    return Walk(path, num_accepted, emitted)
