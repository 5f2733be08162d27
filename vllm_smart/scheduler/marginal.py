"""Policies that verify a node only if it is worth its measured cost."""

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.profiling import StepCost
from vllm_smart.scheduler.budget import Choice, LongRunPrefix, PrefixRule, StepLoad, best_prefix
from vllm_smart.scheduler.policy import (
    Allocation,
    BudgetPolicy,
    Candidates,
    FrontierRows,
    descending,
    split,
    usable_probs,
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
        prefix_rule: PrefixRule = best_prefix,
    ) -> None:
        """Args:
        limits: as for every policy.
        cost: measured costs.
        min_gain: relative improvement of the rate that a further level must promise, >= 0.
        prefix_rule: how many of the candidates, best first, to verify.
        """
        super().__init__(limits)
        self.cost = cost
        self.min_gain = min_gain
        self.prefix_rule = prefix_rule

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
        now = usable_probs(pool, self.limits).reshape(-1)
        above = pool.path_prob[frontier.req, frontier.node]
        children = np.outer(above, child_acceptance[: self.limits.children]).reshape(-1)
        most = len(pool.path_prob) * self.limits.node_budget
        then = descending(np.concatenate((now, children)))[:most]
        stop = self.prefix_rule(descending(now), load, self.cost, spent_ms)
        grow = self.prefix_rule(then, load, self.cost, spent_ms + level_ms)
        return self._is_better(grow, stop), level_ms

    def _is_better(self, grow: Choice, stop: Choice) -> bool:
        """Whether `grow` beats `stop` by the gain asked for."""
        rule = self.prefix_rule
        if isinstance(rule, LongRunPrefix) and rule.rate:
            gain = grow.expected_tokens - stop.expected_tokens
            price = rule.rate * (grow.predicted_ms - stop.predicted_ms)
            return gain - price > self.min_gain * stop.expected_tokens
        return grow.rate > stop.rate * (1.0 + self.min_gain)

    def choose(self, pool: Candidates, load: StepLoad, spent_ms: float) -> Allocation:
        """The best prefix of the batch's candidates, shared out."""
        prob = usable_probs(pool, self.limits)
        choice = self.prefix_rule(descending(prob), load, self.cost, spent_ms)
        if isinstance(self.prefix_rule, LongRunPrefix):
            self.prefix_rule.took(choice)
        return Allocation(split(prob, choice.num_nodes), choice)
