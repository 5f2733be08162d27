"""What a worker counts of its steps, in a few numbers that other processes can read.

They lie in a small file mapped into memory. Counting costs a few array additions per step.
"""

import mmap
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np

from vllm_smart.kernels.evidence import NGRAM
from vllm_smart.tree import TreeBatch

MAX_DEPTH = 16  # deeper walks count as this deep
ERROR_BUCKETS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)  # relative
NODE_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)  # draft nodes of a whole step

COUNTERS = {
    "steps": "Target steps that ended with a decision about the next one.",
    "steps_without_speculation": "Decisions to verify no draft node in the next step.",
    "steps_without_drafting": "Steps in which no drafter ran.",
    "rows_read": "Tokens that the drafter has read.",
    "draft_levels": "Levels drafted, the first of which comes with reading.",
    "unused_draft_levels": "Levels drafted of which no node was verified.",
    "chosen_nodes": "Draft nodes chosen; of requests that end, or are trimmed, not all are verified.",
    "draft_nodes": "Draft nodes verified.",
    "trees": "Trees verified.",
    "accepted_nodes": "Draft nodes accepted.",
    "ngram_draft_nodes": "Draft nodes verified that n-grams have named, or n-grams and a drafter.",
    "ngram_accepted_nodes": "Of these, those that were accepted.",
    "ngram_seconds": "Time spent on looking up n-grams.",
    "expected_tokens": "Tokens expected of the trees verified, bonus tokens included.",
    "emitted_tokens": "Tokens that came of them.",
    "predicted_steps": "Steps whose time had been predicted.",
    "predicted_ms": "Sum of predicted step times, milliseconds.",
    "measured_ms": "Sum of the same steps' measured times, milliseconds.",
    "jit_compilations": "Functions compiled while serving; requests waited for each.",
}
_PLACE = {name: place for place, name in enumerate(COUNTERS)}
_NUM_COUNTERS = len(COUNTERS)
_NUM_DEPTHS = MAX_DEPTH + 1
_NUM_BUDGETS, _NUM_ERRORS = len(NODE_BUCKETS) + 1, len(ERROR_BUCKETS) + 1
NUM_VALUES = _NUM_COUNTERS + 2 * _NUM_DEPTHS + _NUM_BUDGETS + _NUM_ERRORS


class StepStats:
    """The worker's side: counts into `values` [NUM_VALUES] float64, shared with the front end."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self._counter: Any = values.data[:_NUM_COUNTERS]  # cheaper by the number than an array
        rest = values[_NUM_COUNTERS:]
        self._accepted_depth = rest[:_NUM_DEPTHS]
        self._drafted_depth = rest[_NUM_DEPTHS : 2 * _NUM_DEPTHS]
        self._budget = rest[2 * _NUM_DEPTHS :][:_NUM_BUDGETS]
        self._error = rest[2 * _NUM_DEPTHS + _NUM_BUDGETS :]

    @classmethod
    def of_process(cls) -> "StepStats":
        """Counters that no other process reads."""
        return cls(np.zeros(NUM_VALUES))

    @classmethod
    def in_file(cls, path: Path) -> "StepStats":
        """Counters in a new file."""
        with open(path, "w+b") as file:
            file.truncate(NUM_VALUES * 8)
            shared = mmap.mmap(file.fileno(), NUM_VALUES * 8)
        return cls(np.frombuffer(shared, np.float64))

    def reset(self) -> None:
        """Count from 0 again."""
        self._values[:] = 0

    def counters(self) -> dict[str, float | list[float]]:
        """Everything counted so far: sums by name, histograms as counts by bucket."""
        return {
            **dict(zip(COUNTERS, self._counter, strict=True)),
            "accepted_depth": self._accepted_depth.tolist(),
            "tree_depth": self._drafted_depth.tolist(),
            "step_draft_nodes": self._budget.tolist(),
            "step_time_error": self._error.tolist(),
        }

    def _add(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._counter[_PLACE[name]] += amount

    def record_walk(self, num_accepted: np.ndarray, num_drafts: int, expected: float) -> None:
        """A step's trees were verified.

        Args:
            num_accepted: [num_trees] accepted draft nodes of each.
            num_drafts: draft nodes of all trees together.
            expected: how many of them were expected to be accepted.
        """
        num_trees, accepted = len(num_accepted), int(num_accepted.sum())
        self._add(
            trees=num_trees,
            draft_nodes=num_drafts,
            accepted_nodes=accepted,
            expected_tokens=num_trees + expected,
            emitted_tokens=num_trees + accepted,
        )
        np.add.at(self._accepted_depth, np.minimum(num_accepted, MAX_DEPTH), 1)

    def record_ngrams(self, num_drafts: int, num_accepted: int) -> None:
        """Of a step's verified draft nodes, those that n-grams have named."""
        self._add(ngram_draft_nodes=num_drafts, ngram_accepted_nodes=num_accepted)

    def record_lookup(self, seconds: float) -> None:
        """What n-grams have taken in a step."""
        self._add(ngram_seconds=seconds)

    def record_rest(self) -> None:
        """The drafter did not run in a step."""
        self._add(steps=1, steps_without_drafting=1, steps_without_speculation=1)
        self._budget[0] += 1

    def record_trees(self, trees: TreeBatch, num_read: int, num_levels: int) -> None:
        """A step's drafting: the trees chosen, the rows read for them, the levels drafted.

        Args:
            num_levels: of the drafter; 0 where it has not run.
        """
        num_chosen, is_node = int((trees.num_nodes - 1).sum()), trees.is_node()
        deepest = trees.depth.max(axis=1, where=is_node, initial=0)
        is_drafted = is_node & (trees.source != NGRAM)
        used_levels = int(trees.depth.max(where=is_drafted, initial=0))
        self._add(
            steps=1,
            steps_without_speculation=num_chosen == 0,
            steps_without_drafting=num_levels == 0,
            rows_read=num_read,
            draft_levels=num_levels,
            unused_draft_levels=num_levels - used_levels,
            chosen_nodes=num_chosen,
        )
        self._budget[np.searchsorted(NODE_BUCKETS, num_chosen)] += 1
        np.add.at(self._drafted_depth, np.minimum(deepest[trees.num_nodes > 1], MAX_DEPTH), 1)

    def record_time(self, predicted_ms: float, measured_ms: float) -> None:
        """How the prediction of a step's time came out."""
        self._add(predicted_steps=1, predicted_ms=predicted_ms, measured_ms=measured_ms)
        error = abs(predicted_ms / measured_ms - 1.0)
        self._error[bisect_left(ERROR_BUCKETS, error)] += 1

    def record_compilation(self) -> None:
        """Something was compiled while serving."""
        self._add(jit_compilations=1)
