"""The rows of a step's trees, each with its ancestors before it: what a chain's rows are anyway."""

from typing import NamedTuple

import numpy as np

from vllm_smart.step.plan import StepPlan
from vllm_smart.tree import leaf_segments


class Histories(NamedTuple):
    """Rows rearranged so that every node follows its own ancestors."""

    row_start: np.ndarray  # [num_reqs + 1] first virtual row of each request
    rows: np.ndarray  # [num_virtual] logits row of each virtual row
    depth: np.ndarray  # [num_virtual] int32 its place in its root-to-leaf segment
    pick: np.ndarray  # [num_logits] a virtual row of each logits row


def linear_histories(plan: StepPlan) -> Histories:
    """One run of rows from root to leaf per leaf: vLLM's processors read a row's own ancestors.

    Penalties, bad words and custom processors take the rows before a row, back to its root, as
    its history. Only batches that use them pay for the repeated rows.
    """
    num_nodes = plan.trees.num_nodes
    start = np.concatenate(([0], np.cumsum(num_nodes)))
    rows: list[int] = []
    depth: list[int] = []
    row_start = [0]
    pick = np.full(int(start[-1]), -1, np.int64)
    for parent, count, first in zip(plan.trees.parent, num_nodes, start[:-1], strict=True):
        for segment in leaf_segments(parent, int(count)):
            for place, node in enumerate(segment):
                if pick[first + node] < 0:
                    pick[first + node] = len(rows)
                rows.append(int(first) + node)
                depth.append(place)
        row_start.append(len(rows))
    return Histories(np.array(row_start), np.array(rows), np.array(depth, np.int32), pick)
