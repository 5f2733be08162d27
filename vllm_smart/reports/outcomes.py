"""What the walks of a step say about drafts: labels of acceptance, and counters."""

import numpy as np

from vllm_smart.kernels.evidence import GRAMMAR
from vllm_smart.kernels.outcomes.cpu import judged_nodes
from vllm_smart.reports.stats import StepStats
from vllm_smart.scheduler import Controller
from vllm_smart.step import StepPlan


def learn_from_walk(plan: StepPlan, controller: Controller, stats: StepStats) -> None:
    """Learn which children of accepted nodes were accepted, as far as they were asked about.

    Args:
        plan: of a step with drafts, walked.
    """
    path = plan.path
    assert path is not None
    trees, slots = plan.trees, plan.input_batch.idx_mapping_np
    # Rows that had to be filled with something are no drafts.
    is_draft = plan.is_node & (trees.path_prob > 0)
    # What a grammar forces teaches nothing of drafters.
    is_judged = is_draft & (trees.source != GRAMMAR)
    # One layout, or the loop is compiled again for every other one.
    path = np.ascontiguousarray(path)
    req, share, depth, rank, source, accepted = judged_nodes(
        trees.parent, trees.depth, trees.rank, trees.source, trees.draft_prob, is_judged, path
    )
    controller.acceptance.observe(share, depth, rank, source, accepted, slots[req])
    stats.record_walk(trees, is_draft, path)
