"""Engines as their workers tell them: with steps of several sizes, costs, and a tree."""

from typing import Any

import numpy as np

from vllm_smart.profiling import CorrectedCost, Correction, CostSamples, CostTable
from vllm_smart.reports.families import NUM_VALUES
from vllm_smart.reports.look import LatestTrees, seen
from vllm_smart.reports.stats import StepStats
from vllm_smart.scheduler import Explanation, Rest
from vllm_smart.tree import TreeBatch

ABOUT = {"version": "1", "policy": "smart", "drafter": "eagle3+ngram", "table": "guess"}
COSTS = CostTable.from_samples(
    CostSamples(
        verify=((1, 30.0), (2, 30.5), (4, 34.0), (8, 39.0), (32, 70.0)),
        draft=((1, 1.5), (4, 1.9), (16, 4.0)),
    )
)


def trees() -> TreeBatch:
    """Two requests; the second has a tree of six nodes, of which the fourth is padding."""

    def of(kind: type, first: list, second: list) -> np.ndarray:
        return np.array([first, second], kind)

    return TreeBatch(
        token=of(np.int64, [1, 2, 0, 0, 0, 0], [7, 11, 12, 13, 0, 14]),
        parent=of(np.int32, [-1, 0, 0, 0, 0, 0], [-1, 0, 0, 1, 1, 3]),
        depth=of(np.int32, [0, 1, 0, 0, 0, 0], [0, 1, 1, 2, 0, 3]),
        rank=of(np.int32, [0] * 6, [0, 0, 1, 0, 0, 0]),
        path_prob=of(np.float32, [1, 0.5, 0, 0, 0, 0], [1, 0.7, 0.2, 0.5, 0, 0.31]),
        draft_prob=of(np.float32, [1, 0.5, 0, 0, 0, 0], [1, 0.7, 0.2, 0.7, 0, 0.6]),
        source=of(np.int32, [0] * 6, [0, 0, 1, 2, 0, 0]),
        num_nodes=np.array([2, 6], np.int32),
    )


def told(steps: int = 10, engine: int = 0, with_tokens: bool = False) -> dict[str, Any]:
    """What an engine tells after so many steps."""
    values = np.zeros(NUM_VALUES)
    stats = StepStats(values)
    for step in range(steps):
        requests, batch, path = 1 + step % 5, trees(), np.array([[0, -1, -1], [0, 1, 3]])
        is_draft = batch.is_node() & (batch.path_prob > 0)
        stats.record_trees(batch, num_read=4, num_levels=3, used_levels=3, num_requests=requests)
        stats.record_walk(batch, is_draft, path)
        stats.record_time(requests, step_s=0.04, plain_s=0.06)
        stats.record_prediction(0.041, 0.04)
    stats.record_rest(4, Rest.PLAIN_IS_FASTER)
    stats.show_gate(True, 0.25)
    stats.show_table(
        Explanation(size, 3, 4.0 / size, 2.0, 40.0, 30.0, 1 + 1 / size) for size in (1, 2, 4, 8)
    )
    latest = LatestTrees(with_tokens)
    latest.verified(trees(), np.array([[0, -1, -1], [0, 1, 3]]))
    cost = CorrectedCost(COSTS, Correction(verify=(1.1,) * 5, draft=0.9))
    return {"engine": engine, "values": values.tolist(), "about": ABOUT, **seen(cost, latest)}
