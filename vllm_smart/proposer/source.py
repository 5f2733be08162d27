"""Who names candidates: what growing trees asks of them, and one that repeats what was recorded."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.kernels.evidence import GRAMMAR
from vllm_smart.proposer.candidates import Candidates
from vllm_smart.proposer.pool import CandidatePool, Frontier


class CandidateSource(Protocol):
    """Makes the candidates of one step, a level at a time or all at once."""

    name: str
    """In traces and metrics."""

    is_one_shot: bool
    """Whether the first call brings all that there is: no level is drafted after it."""

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        """Add the candidates after some nodes to `pool`.

        Args:
            pool: of the step.
            frontier: the roots at the first call, then nodes of the level that was added last.

        Returns:
            Rows of the frontier of which there was something to add; 0 ends the growth.
        """


class RecordedSource:
    """Shows what is known already, for whoever asks how another policy would have grown it."""

    name, is_one_shot = "recorded", False

    def __init__(self, known: Candidates, children: int) -> None:
        """Args:
        known: all that there is to show.
        children: most of a node; those of higher rank stay hidden.
        """
        self._known = known
        columns = np.arange(known.parent.shape[1])
        self._may_show = (known.rank < children) & (columns < known.size[:, None]) & (columns > 0)
        self._children = children
        self.lacks = False  # whether anybody has asked for what is not known

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        """Show the children of the frontier's nodes."""
        known = self._known
        is_expanded = np.zeros(known.parent.shape, bool)
        is_expanded[frontier.req, frontier.node] = True
        above = np.maximum(known.parent, 0)
        shown = self._may_show & np.take_along_axis(is_expanded, above, axis=1)
        req, node = np.nonzero(shown)
        num_children = np.zeros(known.parent.shape, np.int64)
        np.add.at(num_children, (req, known.parent[req, node]), 1)
        counts: npt.NDArray[np.int64] = num_children[frontier.req, frontier.node]
        # What a grammar forces has no siblings.
        is_forced = np.zeros(known.parent.shape, bool)
        forced = np.nonzero(known.source == GRAMMAR)
        is_forced[forced[0], known.parent[forced]] = True
        is_short = (counts < self._children) & ~is_forced[frontier.req, frontier.node]
        self.lacks |= bool(is_short.any())
        if not counts.any():
            return 0
        pool.show(req, node, known.path_prob[req, node])
        return int(np.count_nonzero(counts))
