"""Where and when trees grow; growing itself never asks."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.proposer.candidates import Candidates
from vllm_smart.proposer.grammar import StepGrammars
from vllm_smart.proposer.growth import GrowthBounds, LevelDecisions, grow
from vllm_smart.proposer.pool import CandidatePool
from vllm_smart.proposer.source import CandidateSource


@dataclass(frozen=True)
class GrowthWork:
    """The growth of one step's trees; as for `grow`."""

    pool: CandidatePool
    source: CandidateSource
    grows: npt.NDArray[np.integer[Any]]
    bounds: GrowthBounds
    decisions: LevelDecisions
    grammars: StepGrammars | None = None


class Placement(Protocol):
    """Runs growth: here and now, or elsewhere while something else happens."""

    def submit(self, work: GrowthWork) -> Any:
        """Have `work` done; returns a ticket for it. Does not wait for work that is done elsewhere."""

    def collect(self, ticket: Any) -> Candidates:
        """What was submitted: the pool's candidates, of roots alone where nothing was to be had."""


class InStep:
    """Grows at once, in the step that verifies what the one before has grown."""

    def submit(self, work: GrowthWork) -> Candidates:
        """Grow; the candidates are the ticket."""
        grow(work.pool, work.source, work.grows, work.bounds, work.decisions, work.grammars)
        return work.pool.candidates

    def collect(self, ticket: Candidates) -> Candidates:
        """All of them."""
        return ticket
