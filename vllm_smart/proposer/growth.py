"""Growing trees, whoever makes the candidates: the one loop over draft levels."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.proposer.grammar import StepGrammars
from vllm_smart.proposer.pool import CandidatePool, Frontier
from vllm_smart.proposer.source import CandidateSource

_Ints = npt.NDArray[np.integer[Any]]


class LevelDecisions(Protocol):
    """Says how far a step's trees grow."""

    levels_ms: float
    """Predicted time of the levels that it took; 0 where costs are unknown."""

    def ask(self, pool: CandidatePool, frontier: Frontier, depth: int) -> npt.NDArray[np.bool_]:
        """[num_rows] which nodes of a frontier at `depth` to expand: none to stop."""

    def took(self, num_rows: int) -> None:
        """The level that was asked about last is drafted, `num_rows` of it."""


@dataclass(frozen=True)
class GrowthBounds:
    """What no policy may exceed in a step."""

    useful_depth: _Ints  # [num_reqs] deeper nodes would be wasted
    most_rows: _Ints  # [num_reqs] most candidates that can be expanded
    max_width: int  # most candidates of a request that one level expands


def grow(
    pool: CandidatePool,
    source: CandidateSource,
    grows: _Ints,
    bounds: GrowthBounds,
    decisions: LevelDecisions,
    grammars: StepGrammars | None = None,
) -> None:
    """Fill `pool` from `source`, level by level, as long as `decisions` has it.

    Args:
        pool: of roots, and of what was there without the source.
        source: of all candidates.
        grows: [num_growing] requests that have candidates, ascending.
        bounds: of the step.
        decisions: asked before every level but the first.
        grammars: of requests; what they force is added after every node that might be expanded.
    """
    num_reqs = len(pool.candidates.size)
    roots = Frontier.of_roots(grows, num_reqs)
    if grammars is not None:
        roots = grammars.visit(pool, roots)
    if not source.expand(pool, roots) or source.is_one_shot:
        return
    width, free = min(pool.limits.width, bounds.max_width), bounds.most_rows
    # What is forced after the deepest level is added, too.
    last = pool.limits.depth - 1
    for depth in range(1, last + (1 if grammars is None else 2)):
        frontier = pool.frontier(np.minimum(width, free), active=bounds.useful_depth > depth)
        if grammars is not None:
            frontier = grammars.visit(pool, frontier)
        if not len(frontier.req) or depth > last:
            break
        frontier = frontier.only(decisions.ask(pool, frontier, depth))
        if not len(frontier.req):
            break
        num_rows = source.expand(pool, frontier)
        if not num_rows:
            break
        decisions.took(num_rows)
        free = free - np.diff(frontier.row_start)
