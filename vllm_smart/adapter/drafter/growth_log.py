"""How the trees of one step were grown: what learning, counters and traces need of it."""

from dataclasses import dataclass, field

import numpy as np

from vllm_smart.proposer import CandidatePool
from vllm_smart.scheduler import Allocation, Drafting, StepLoad
from vllm_smart.tree import TreeBatch


@dataclass
class GrowthLog:
    """Filled while trees grow. A request is one that drafts, in the pool's order."""

    drafting: Drafting
    indices: np.ndarray  # [num_drafting] the requests' places in the batch
    load: StepLoad  # of the step that will verify
    pool: CandidatePool
    grows: np.ndarray  # [num_growing] requests that have candidates
    useful_depth: np.ndarray  # [num_drafting] deeper nodes would be wasted
    capacity: np.ndarray  # [num_drafting] most candidates that the drafter can expand
    num_read: int  # rows that the drafter read
    overhead_ms: float  # of a step that drafts, beyond its forwards
    read_ms: float  # predicted
    max_width: int = 1  # most rows per request of a level
    levels_ms: float = 0.0  # predicted, all further levels
    level_rows: list[int] = field(default_factory=list)  # of each further level that was run
    # Expected acceptance of each level that was asked about, the refused one included.
    child_acceptance: list[np.ndarray] = field(default_factory=list)
    allocation: Allocation | None = None
    trees: TreeBatch | None = None

    @property
    def forwards_ms(self) -> float:
        """Predicted time of all forwards of the drafter."""
        return self.read_ms + self.levels_ms

    @property
    def spent_ms(self) -> float:
        """The same, and what every step with trees takes besides forwards."""
        return self.overhead_ms + self.forwards_ms
