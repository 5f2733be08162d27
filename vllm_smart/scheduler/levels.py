"""A policy asked about the draft levels of one step, one after the other."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.scheduler.budget import StepLoad
from vllm_smart.scheduler.policy import Allocation, BudgetPolicy, Candidates, FrontierRows


class _Pool(Protocol):
    @property
    def candidates(self) -> Any:
        """All candidates so far, as policies read them."""


class PolicyLevels:
    """What a policy has said about a step's levels, and what they cost.

    Attributes:
        rows: of each level after the first that was drafted.
        asked: rows that the policy wanted of each, and of one more where that was not to be had.
        child_acceptance: expected acceptance of each level that was asked about, the refused one
            included; as `BudgetPolicy.level` is given it.
        levels_ms: predicted time of the levels drafted.
    """

    def __init__(
        self,
        policy: BudgetPolicy,
        load: StepLoad,
        spent_ms: float,
        acceptance_at: Callable[[int], npt.NDArray[np.float32]],
    ) -> None:
        """Args:
        policy: to ask.
        load: of the step that will verify the trees.
        spent_ms: predicted time of what the step takes besides verification and further levels.
        acceptance_at: expected acceptance of an undrafted level by its depth.
        """
        self._policy, self._load, self._spent_ms = policy, load, spent_ms
        self._acceptance_at = acceptance_at
        self._level_ms = 0.0  # of the level that was asked about last
        self.rows: list[int] = []
        self.asked: list[int] = []
        self.child_acceptance: list[npt.NDArray[np.float32]] = []
        self.levels_ms = 0.0

    def ask(self, pool: _Pool, frontier: FrontierRows, depth: int) -> npt.NDArray[np.bool_]:
        """[num_rows] which nodes of a frontier at `depth` to expand: none to stop."""
        self.child_acceptance.append(self._acceptance_at(depth + 1))
        expanded, self._level_ms = self._policy.level(
            pool.candidates, frontier, self.child_acceptance[-1], self._load, self.spent_ms
        )
        if num_rows := int(np.count_nonzero(expanded)):
            self.asked.append(num_rows)
        return expanded

    def took(self, num_rows: int) -> None:
        """The level that was asked about last is drafted, `num_rows` of it."""
        self.rows.append(num_rows)
        self.levels_ms += self._level_ms

    @property
    def spent_ms(self) -> float:
        """Predicted time of what the step takes besides verification."""
        return self._spent_ms + self.levels_ms

    def choose(self, candidates: Candidates) -> Allocation:
        """What the policy verifies of them."""
        return self._policy.choose(candidates, self._load, self.spent_ms)
