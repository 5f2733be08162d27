"""What the walks of a step say about drafts: labels of acceptance, and counters."""

import numpy as np

from vllm_smart.adapter.metrics import StepStats
from vllm_smart.adapter.step_plan import StepPlan
from vllm_smart.scheduler import Controller


def learn_from_walk(plan: StepPlan, controller: Controller, stats: StepStats) -> None:
    """Learn which children of accepted nodes were accepted; the others say nothing.

    Args:
        plan: of a step with drafts, walked.
    """
    path, num_accepted = plan.path, plan.num_accepted
    assert path is not None
    assert num_accepted is not None
    trees, slots = plan.trees, plan.input_batch.idx_mapping_np
    accepted = np.zeros((path.shape[0], trees.parent.shape[1] + 1), bool)
    np.put_along_axis(accepted, path, True, axis=1)  # -1 lands in the spare column
    accepted = accepted[:, :-1]
    tried = plan.is_node & np.take_along_axis(accepted, np.maximum(trees.parent, 0), axis=1)
    tried[:, 0] = False
    controller.acceptance.observe(
        trees.draft_prob[tried],
        trees.depth[tried],
        trees.rank[tried],
        accepted[tried],
        np.repeat(slots, tried.sum(axis=1)),
    )
    expected = trees.path_prob[:, 1:].sum(where=plan.is_node[:, 1:])
    stats.record_walk(num_accepted[trees.num_nodes > 1], float(expected))
