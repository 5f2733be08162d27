"""How the trees of one step were grown: what learning, counters and traces need of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_smart.proposer import Candidates, GrowthBounds
from vllm_smart.scheduler import Allocation, Choice, Drafting, StepLoad
from vllm_smart.tree import TreeBatch


@dataclass(frozen=True)
class GrowthLog:
    """Of the requests that grow trees, in the order of the batch."""

    drafting: Drafting  # NONE where n-grams were enough
    indices: np.ndarray  # [num_reqs] the requests' places in the batch
    load: StepLoad  # of the step that will verify
    candidates: Candidates  # all of them
    grows: np.ndarray  # [num_growing] requests that have some of the drafter's
    bounds: GrowthBounds
    num_read: int  # rows that the drafter read; 0 = it has not run
    num_usual: int  # of these, what the step itself has brought: no prompts, nothing that was put off
    level_rows: Sequence[int]  # of each further level that was run
    # Expected acceptance of each level that was asked about, the refused one included.
    child_acceptance: Sequence[np.ndarray]
    # Predicted, of all that the step takes besides verification and the reading of other rows.
    spent_ms: float
    allocation: Allocation | None  # what the policy chose; None where nobody asks
    trees: TreeBatch
    # [num_reqs, <= node_budget] path_prob of what there was without the drafter, best first.
    undrafted: np.ndarray | None = None
    # [num_reqs] bool, whose candidates are ranked by the target's noise; None = nobody's.
    is_coupled: np.ndarray | None = None
    # What would be verified without the drafter, which has run; None where nobody asks.
    without: Choice | None = None
    is_beside: bool = False  # whether the drafter runs while the target does
