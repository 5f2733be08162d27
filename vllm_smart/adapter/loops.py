"""Compiles the host's loops when the engine starts, not while requests wait."""

from collections.abc import Callable

import numpy as np

from vllm_smart.proposer import CandidatePool
from vllm_smart.scheduler import Controller, StepLoad


def compile_loops(controller: Controller, new_pool: Callable[[np.ndarray], CandidatePool]) -> None:
    """Grow a tree with `controller`, which learns a little from it.

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
