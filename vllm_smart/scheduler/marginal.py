"""Policies that verify a node only if it is worth its measured cost."""

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.profiling import StepCost
from vllm_smart.scheduler.budget import Choice, PrefixRule, StepLoad
from vllm_smart.scheduler.policy import (
    Allocation,
    BudgetPolicy,
    Candidates,
    FrontierRows,
    branches,
    branching_value,
    descending,
    split,
    usable_values,
)


class MarginalPolicy(BudgetPolicy):
    """One allocation over the whole batch; a level is drafted if its best outcome beats stopping.

    Smart takes the best prefix of all candidates, for the step or for the long run; first_drop stops
    where the rate first falls.
    """

    def __init__(
        self,
        limits: GrowthLimits,
        cost: StepCost,
        min_gain: float = 0.0,
        rule: PrefixRule | None = None,
        drafts_all_levels: bool = False,
    ) -> None:
        """Args:
        limits: as for every policy.
        cost: measured costs.
        min_gain: relative improvement of the rate that a further level must promise, >= 0.
        rule: how many of the candidates, best first, to verify; None = the step's best prefix.
        drafts_all_levels: never ask whether a level pays.
        """
        super().__init__(limits)
        self.cost = cost
        self.min_gain = min_gain
        self.rule = rule if rule is not None else PrefixRule()
        self.drafts_all_levels = drafts_all_levels

    def wants_level(
        self,
        pool: Candidates,
        frontier: FrontierRows,
        child_acceptance: npt.NDArray[np.float32],
        load: StepLoad,
        spent_ms: float,
    ) -> tuple[bool, float]:
        """Compare the best rate now with the best rate among the expected children, too."""
        level_ms = self.cost.draft_ms(len(frontier.req))
        if self.drafts_all_levels:
            return True, level_ms
        now = usable_values(pool, self.limits).reshape(-1)
        above = pool.path_prob[frontier.req, frontier.node] * pool.weight[frontier.req]
        children = np.outer(above, child_acceptance[: self.limits.children]).reshape(-1)
        most = len(pool.path_prob) * self.limits.node_budget
        then = descending(np.concatenate((now, children)))[:most]
        branching = self._branching_value(pool, load)
        stop = self.rule(descending(now), load, self.cost, spent_ms, branching)
        grow = self.rule(then, load, self.cost, spent_ms + level_ms, branching)
        return self.rule.prefers(grow, stop, self.min_gain), level_ms

    def choose(self, pool: Candidates, load: StepLoad, spent_ms: float) -> Allocation:
        """The best prefix of the batch's candidates, shared out."""
        values = usable_values(pool, self.limits)
        branching = self._branching_value(pool, load)
        choice = self.rule(descending(values), load, self.cost, spent_ms, branching)
        self.rule.took(choice)
        return Allocation(split(values, choice.num_nodes), choice)

    def _branching_value(self, pool: Candidates, load: StepLoad) -> float:
        return branching_value(pool) if self.cost.branching_ms(load.num_requests) else 0.0


class EqualSharePolicy(MarginalPolicy):
    """As `MarginalPolicy`, but every request gets as many nodes as the others."""

    def choose(self, pool: Candidates, load: StepLoad, spent_ms: float) -> Allocation:
        """The number of nodes each that emits most tokens per millisecond, over all numbers."""
        values = usable_values(pool, self.limits)
        counts = np.concatenate(([0], np.cumsum(np.count_nonzero(values, axis=0))))
        tokens = load.num_requests + np.concatenate(([0.0], np.cumsum(values.sum(axis=0))))
        fixed = load.num_prefill_tokens + load.num_requests
        ms = self.cost.verify_ms(fixed + counts, load.context) + spent_ms
        each = int((tokens / ms).argmax())
        num_draft_nodes = np.minimum(each, np.count_nonzero(values, axis=1))
        predicted_ms = float(ms[each])
        if branches(pool, num_draft_nodes):
            predicted_ms += self.cost.branching_ms(load.num_requests)
        value = float(tokens[each])
        choice = Choice(int(counts[each]), value, predicted_ms, value / predicted_ms)
        return Allocation(num_draft_nodes, choice)
