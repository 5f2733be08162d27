"""How far each request has come, for steps that are scheduled before it is known."""

import numpy as np

from vllm_smart.step.result import StepResult
from vllm_smart.tree import TreeBatch


class Progress:
    """How far each request is and what was drafted for it, by request-state slot."""

    def __init__(self, max_num_reqs: int) -> None:
        """Args:
        max_num_reqs: number of slots.
        """
        self._end = np.zeros(max_num_reqs, np.int64)  # position after the last one that stands
        self._num_drafts = np.zeros(max_num_reqs, np.int64)  # nodes that wait for verification
        self._has_tree = np.zeros(max_num_reqs, bool)  # whether there are any; known before how many
        self._chosen_each: float | None = None  # of a request, in the latest step that is known

    def add_request(self, slot: int, num_computed: int) -> None:
        """A request was given `slot`; `num_computed` tokens of it lie in the cache already."""
        self._end[slot], self._num_drafts[slot] = num_computed, 0
        self._has_tree[slot] = False

    def drafts(self, slots: np.ndarray, drafting: np.ndarray) -> None:
        """A step is drafting; what becomes of it is not known yet.

        Args:
            slots: [num_reqs] of its batch.
            drafting: [num_drafting] those of them that grow trees.
        """
        self._has_tree[slots] = False
        self._has_tree[drafting] = True

    def ends(self, slots: np.ndarray) -> np.ndarray:
        """[num_reqs] positions after the last ones that stand, of requests in `slots`."""
        ends: np.ndarray = self._end[slots]
        return ends

    def has_tree(self, slot: int) -> bool:
        """Whether the request in `slot` has a tree, of a root alone perhaps."""
        return bool(self._has_tree[slot])

    def num_drafts_of(self, slot: int) -> int:
        """Nodes of the request in `slot` that wait for verification."""
        return int(self._num_drafts[slot])

    def num_drafts(self, room: list[int]) -> int:
        """Draft nodes that the next step should verify, of requests that have trees.

        As many as were chosen for each of them last; before that is known, all that there is room for.
        """
        if self._chosen_each is None:
            return sum(room)
        return min(round(self._chosen_each * len(room)), sum(room))

    def stepped(self, result: StepResult, drafting: np.ndarray, trees: TreeBatch | None) -> None:
        """A step has ended.

        Args:
            result: what it has brought.
            drafting: [num_drafting] batch indices of the requests that `trees` were grown for.
            trees: theirs; None if nobody drafted.
        """
        self._end[result.slots] = result.end
        self._num_drafts[result.slots] = 0
        if trees is not None:
            self._num_drafts[result.slots[drafting]] = trees.num_nodes - 1
            chosen = trees.num_nodes[result.emits[drafting]] - 1
            self._chosen_each = float(chosen.mean()) if len(chosen) else self._chosen_each
