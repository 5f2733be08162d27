"""The walk through trees on CPU cores."""

import numpy as np
import torch

from vllm_smart.step.plan import StepPlan
from vllm_smart.step.walk import NEVER_SAMPLED, Walk
from vllm_smart.tree import walk


def walk_plan(
    plan: StepPlan,
    sampled: torch.Tensor,
    row_start: torch.Tensor,
    invalid_drafts: torch.Tensor | None,
) -> Walk:
    """Follow the target's samples through the trees of `plan`; see `device_walk.walk_plan`."""
    sampled_by_node = np.full(plan.is_node.shape, -1, np.int64)
    sampled_by_node[plan.is_node] = sampled.numpy()
    drafts = plan.trees.token
    if invalid_drafts is not None:
        drafts = drafts.copy()
        drafts[plan.is_node] = np.where(invalid_drafts.numpy(), NEVER_SAMPLED, drafts[plan.is_node])
    path, num_accepted = walk(plan.trees.parent, drafts, plan.trees.num_nodes, sampled_by_node)
    emitted = np.take_along_axis(sampled_by_node, np.maximum(path, 0), axis=1)
    return Walk(*(torch.from_numpy(array) for array in (path, num_accepted, emitted)))
