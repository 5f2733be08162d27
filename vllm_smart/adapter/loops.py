"""Compiles the host's loops when the engine starts, not while requests wait."""

from collections.abc import Callable

import numpy as np

from vllm_smart.kernels.outcomes import judged_nodes
from vllm_smart.profiling import NO_CONTEXT, StepShape
from vllm_smart.proposer import CandidatePool
from vllm_smart.scheduler import Controller, StepLoad
from vllm_smart.tree import walk


def compile_loops(controller: Controller, new_pool: Callable[[np.ndarray], CandidatePool]) -> None:
    """Grow a tree with `controller`, walk it and time its step; the controller learns a little.

    Args:
        new_pool: makes an empty pool for requests in some slots.
    """
    limits, policy = controller.limits, controller.policy
    if limits.node_budget == 0:
        return
    root, load = np.zeros(1, np.int64), StepLoad(1)
    pool = new_pool(root)
    prob = np.full((1, limits.children), 0.5 / limits.children, np.float32)
    pool.add_children(root, root, np.arange(limits.children)[None], prob)
    expected = controller.acceptance.mean_by_rank(2)
    policy.level(pool, pool.frontier(1), expected, load, 1.0)
    policy.choose(pool, load, 1.0)
    trees = pool.select(np.ones(1, np.int64))
    path, _ = walk(trees.parent, trees.token, trees.num_nodes, np.zeros_like(trees.token))
    judged_nodes(
        trees.parent,
        trees.depth,
        trees.rank,
        trees.draft_prob,
        trees.is_node(),
        np.ascontiguousarray(path),
    )
    shape = StepShape(num_tokens=1, context=NO_CONTEXT, num_requests=1, branches=False)
    for now_s in (0.0, 1e-3):
        controller.clock.begins(now_s, shape, has_prefill=False, after_pause=False)
        controller.clock.rested()
