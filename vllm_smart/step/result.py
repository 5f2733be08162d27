"""What a step has brought each of its requests."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from vllm_smart.step.plan import StepPlan


@dataclass(frozen=True)
class StepResult:
    """What is known of each request of a batch after its step: [num_reqs] each."""

    slots: np.ndarray  # request-state slots
    start: np.ndarray  # first position that the step computed
    end: np.ndarray  # position after the last one that stands: the root of the next tree
    emits: np.ndarray  # bool, whether the request has a next token, and so a root

    @classmethod
    def of_plain(cls, plan: StepPlan) -> "StepResult":
        """Of a plain step, which needs no look at what the verifier has counted."""
        batch = plan.input_batch
        start = batch.num_computed_tokens_np.astype(np.int64)
        return cls(batch.idx_mapping_np, start, start + 1, _all_emit(batch.num_reqs))

    @classmethod
    def of(cls, plan: StepPlan, num_sampled: np.ndarray, num_rejected: np.ndarray) -> "StepResult":
        """From what the verifier has counted: [num_reqs] tokens sampled, and nodes rejected."""
        batch = plan.input_batch
        start = batch.num_computed_tokens_np.astype(np.int64)
        return cls(
            slots=batch.idx_mapping_np,
            start=start,
            end=start + batch.num_scheduled_tokens - num_rejected,
            emits=num_sampled > 0,
        )

    @classmethod
    def at_most(cls, plan: StepPlan) -> "StepResult":
        """What the step may bring at most, told before it is known: all but `end` is exact.

        `end` stands for paths as long as the trees are deep; without drafts it is exact, too.
        """
        batch, trees = plan.input_batch, plan.trees
        start = batch.num_computed_tokens_np.astype(np.int64)
        scheduled_end = start + batch.num_scheduled_tokens
        longest = trees.depth.max(axis=1, where=plan.is_node, initial=0)
        return cls(
            slots=batch.idx_mapping_np,
            start=start,
            end=scheduled_end - (trees.num_nodes - 1 - longest),
            emits=scheduled_end >= batch.prefill_len_np,
        )


@cache
def _all_emit(num_reqs: int) -> np.ndarray:
    """[num_reqs] bool; not to be written to."""
    return np.ones(num_reqs, bool)
