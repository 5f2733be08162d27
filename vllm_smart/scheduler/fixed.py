"""Policies that always verify the same number of nodes, whatever it costs."""

import numpy as np
import numpy.typing as npt

from vllm_smart.scheduler.budget import ChoiceSpec, StepLoad
from vllm_smart.scheduler.policy import (
    Allocation,
    BudgetPolicy,
    Candidates,
    FrontierRows,
    counted,
    usable_probs,
)


class FixedPolicy(BudgetPolicy):
    """Draft every level, verify the best `node_budget` candidates of each request.

    With EAGLE-2's limits these are its trees, with width 1 chains, with budget 0 plain decoding.
    """

    has_spec, weighs_costs = True, False

    def level(
        self,
        pool: Candidates,
        frontier: FrontierRows,
        child_acceptance: npt.NDArray[np.float32],
        load: StepLoad,
        spent_ms: float,
    ) -> tuple[npt.NDArray[np.bool_], float]:
        """All of them, unless nothing may ever be drafted."""
        return np.full(len(frontier.req), self.limits.node_budget > 0), 0.0

    def choose(self, pool: Candidates, load: StepLoad, spent_ms: float) -> Allocation:
        """All candidates up to the budget."""
        prob = usable_probs(pool, self.limits)
        num_draft_nodes = np.count_nonzero(prob, axis=1)
        return Allocation(num_draft_nodes, counted(prob, num_draft_nodes, load))

    def spec(self, load: StepLoad, num_reqs: int) -> ChoiceSpec:
        """Whatever it costs."""
        return ChoiceSpec(prices=None)
