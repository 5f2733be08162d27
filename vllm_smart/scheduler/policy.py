"""What every policy answers: is another draft level worth it, and how many nodes does each get."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.evidence import GRAMMAR, MODEL, Evidence
from vllm_smart.scheduler.budget import Choice, ChoiceSpec, StepLoad


class Candidates(Protocol):
    """The candidate nodes of a batch, as `vllm_smart.proposer.Candidates` records them."""

    path_prob: npt.NDArray[np.float32]
    """[num_reqs, capacity], column 0 the root; 0 where unused or ruled out."""
    depth: npt.NDArray[np.int32]
    """[num_reqs, capacity], 0 at roots."""
    rank: npt.NDArray[np.int32]
    """[num_reqs, capacity] among siblings, 0 = the likeliest."""
    size: npt.NDArray[np.int64]
    """[num_reqs] columns in use."""
    parent: npt.NDArray[np.int32]
    """[num_reqs, capacity] columns, -1 at roots."""
    weight: npt.NDArray[np.float32]
    """[num_reqs] what a token of each request is worth; 1 on average."""
    max_nodes: npt.NDArray[np.int64] | None
    """[num_reqs] most draft nodes that each request allows; None = no request has a say."""

    source: npt.NDArray[np.int32]
    """[num_reqs, capacity] who has named each."""
    evidence: Evidence | None
    """What speaks for each where several sources do."""

    def best_first(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Columns and path_prob of each request's candidates, the root first, best first."""

    def off_chain(self) -> npt.NDArray[np.float32]:
        """[num_reqs] path_prob of the best candidate that makes a tree of its request's chain.

        A request's best nodes are a chain as long as the i-th of them lies at depth i. 0 if all do.
        """


class FrontierRows(Protocol):
    """The candidates that the next draft level would expand."""

    @property
    def req(self) -> npt.NDArray[np.int64]:
        """[num_rows] request of each."""

    @property
    def node(self) -> npt.NDArray[np.int64]:
        """[num_rows] column of each in the candidates."""


@dataclass(frozen=True)
class Allocation:
    """How many draft nodes each request gets in the next target step."""

    num_draft_nodes: npt.NDArray[np.int64]  # [num_reqs]
    choice: Choice  # zeros in its milliseconds and rate where the policy knows no costs


class BudgetPolicy(ABC):
    """Decides how far trees grow and what of them is verified."""

    has_spec = False
    """Whether `spec` says all about the choice; or else only `choose` makes it, on the host."""
    weighs_costs = True
    """Whether a level is drafted only if it pays."""
    remembers_choices = False
    """Whether `choose` is to be asked at every step, whoever makes the choice."""

    def __init__(self, limits: GrowthLimits) -> None:
        """Args:
        limits: no request gets more than `limits.node_budget` draft nodes.
        """
        self.limits = limits

    @abstractmethod
    def level(
        self,
        pool: Candidates,
        frontier: FrontierRows,
        child_acceptance: npt.NDArray[np.float32],
        load: StepLoad,
        spent_ms: float,
    ) -> tuple[npt.NDArray[np.bool_], float]:
        """Which nodes the next draft level should expand: none if it is not worth its forward.

        Args:
            pool: all candidates so far.
            frontier: at least one row; the nodes that would be expanded.
            child_acceptance: [NUM_CONFIDENCES, >= children] expected acceptance of their children,
                by the confidence of the node expanded and by rank; of those that have none yet.
            load: of the step that will verify the trees.
            spent_ms: predicted time of the levels drafted so far in this step, and whatever else
                the step takes that the cost table does not know.

        Returns:
            [num_rows] bool, and the level's predicted milliseconds (0 where costs are unknown).
        """

    @abstractmethod
    def choose(self, pool: Candidates, load: StepLoad, spent_ms: float) -> Allocation:
        """How many of its best candidates each request verifies; arguments as above."""

    def spec(self, load: StepLoad, num_reqs: int) -> ChoiceSpec:
        """What `choose` goes by, for whoever chooses elsewhere; only where there is one.

        Args:
            load: of the step that will verify.
            num_reqs: requests that may have candidates.
        """
        raise NotImplementedError


def usable_values(pool: Candidates, limits: GrowthLimits) -> npt.NDArray[np.float32]:
    """[num_reqs, <= node_budget] what each candidate that may be verified is worth, best first."""
    values = usable_probs(pool, limits)
    values = values * pool.weight[:, None]
    if pool.max_nodes is not None:
        values[np.arange(values.shape[1]) >= pool.max_nodes[:, None]] = 0.0
    return values


def branches(pool: Candidates, num_draft_nodes: npt.NDArray[np.int64]) -> bool:
    """Whether the best [num_reqs] `num_draft_nodes` of some request are no chain."""
    order, _ = pool.best_first()
    depth = np.take_along_axis(pool.depth, order, axis=1)
    place = np.arange(depth.shape[1])
    return bool(((depth != place) & (place <= num_draft_nodes[:, None])).any())


def usable_probs(pool: Candidates, limits: GrowthLimits) -> npt.NDArray[np.float32]:
    """[num_reqs, <= node_budget] path_prob of what each request may verify, best first."""
    return pool.best_first()[1][:, 1 : 1 + limits.node_budget]


def usable_levels(pool: Candidates, limits: GrowthLimits) -> npt.NDArray[np.int32]:
    """[num_reqs, <= node_budget] levels that a drafter has to run for the same candidates, at least 1.

    A candidate that somebody else has named is there with the first, what a grammar forces with the
    node that it comes after.
    """
    order = pool.best_first()[0][:, 1 : 1 + limits.node_budget]
    levels: npt.NDArray[np.int32] = np.maximum(pool.depth, 1)
    if pool.evidence is not None:
        levels = np.where(pool.source == MODEL, levels, np.int32(1))
    is_forced = pool.source == GRAMMAR
    if is_forced.any():
        for column in range(1, levels.shape[1]):
            above = np.take_along_axis(levels, pool.parent[:, column, None], axis=1)[:, 0]
            levels[:, column] = np.where(is_forced[:, column], above, levels[:, column])
    found: npt.NDArray[np.int32] = np.take_along_axis(levels, order, axis=1)
    return found


def descending(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1-D `values`, none negative, sorted downwards."""
    return np.ascontiguousarray(np.sort(values)[::-1])


def split(prob: npt.NDArray[np.float32], num_nodes: int) -> npt.NDArray[np.int64]:
    """Share out the `num_nodes` best candidates of a batch.

    Args:
        prob: [num_reqs, columns] path_prob, each row never increasing.
        num_nodes: at most the number of positive entries.

    Returns:
        [num_reqs] how many of each row are among the best; ties go to the lower request, so that
        every tensor-parallel rank shares out alike.
    """
    if num_nodes == 0:
        return np.zeros(len(prob), np.int64)
    last = np.partition(prob, prob.size - num_nodes, axis=None)[prob.size - num_nodes]
    shares: npt.NDArray[np.int64] = (prob >= last).sum(axis=1)
    too_many = int(shares.sum()) - num_nodes
    if too_many:
        tied = (prob == last).sum(axis=1)
        tied_after = tied.sum() - np.cumsum(tied)
        shares -= np.clip(too_many - tied_after, 0, tied)
    return shares


def counted(prob: npt.NDArray[Any], num_draft_nodes: npt.NDArray[np.int64], load: StepLoad) -> Choice:
    """The choice that a policy without costs made: tokens are known, times are not."""
    taken = np.arange(prob.shape[1]) < num_draft_nodes[:, None]
    expected = load.num_requests + float(prob.sum(where=taken, dtype=np.float64))
    return Choice(int(num_draft_nodes.sum()), expected, predicted_ms=0.0, rate=0.0)
