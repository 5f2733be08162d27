"""SMART's rule as published, for comparison with ours.

Source: arXiv 2604.09731. The benefit of a node is P(path) / |path|; n nodes cost
lambda * n + gamma * (exp(delta * n**rho) - 1), fitted to measurements and without an intercept.
Level by level, best first, a node is kept iff alpha * benefit / marginal cost exceeds the tree's
benefit / cost. Differs: the cost is that of all trees of the batch together, taken as equally
large, since a serving step verifies them together.
"""

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.profiling import StepCost
from vllm_smart.scheduler.budget import Choice, StepLoad
from vllm_smart.scheduler.exponential_cost import ExponentialCost
from vllm_smart.scheduler.policy import Allocation, BudgetPolicy, Candidates, FrontierRows, branches


class PaperPolicy(BudgetPolicy):
    """Benefit as a path mean, smooth cost, equal split of the device's budget, greedy stop."""

    def __init__(
        self, limits: GrowthLimits, cost: StepCost, alpha: float, device_budget: int | None
    ) -> None:
        """Args:
        limits: as for every policy.
        cost: measured costs, to fit the paper's formula to.
        alpha: damping of the benefit, in (0, 1].
        device_budget: draft nodes of a whole step, shared equally; None leaves node_budget.
        """
        super().__init__(limits)
        self.cost = cost
        self.alpha = alpha
        self.device_budget = device_budget
        self._fitted = ExponentialCost.fit(cost)

    def level(
        self,
        pool: Candidates,
        frontier: FrontierRows,
        child_acceptance: npt.NDArray[np.float32],
        load: StepLoad,
        spent_ms: float,
    ) -> tuple[npt.NDArray[np.bool_], float]:
        """All of them, unless no node of the latest level was kept or every budget is used up."""
        level_ms = self.cost.draft_ms(len(frontier.req))
        kept = self._keep(pool, load)
        num_kept = np.count_nonzero(kept, axis=1)
        grows = kept[frontier.req, frontier.node] & (num_kept[frontier.req] < self._budget(load))
        return np.full(len(frontier.req), bool(grows.any())), level_ms

    def choose(self, pool: Candidates, load: StepLoad, spent_ms: float) -> Allocation:
        """The nodes kept; as many of each request's best, since trees are prefixes."""
        kept = self._keep(pool, load)
        num_draft_nodes = np.count_nonzero(kept, axis=1)
        tokens = load.num_requests + float(pool.path_prob.sum(where=kept, dtype=np.float64))
        total = int(num_draft_nodes.sum())
        ms = float(load.verify_ms(self.cost, np.array([total]))[0]) + spent_ms
        if branches(pool, num_draft_nodes):
            ms += self.cost.branching_ms(load.num_requests)
        return Allocation(num_draft_nodes, Choice(total, tokens, ms, tokens / ms))

    def _budget(self, load: StepLoad) -> int:
        if self.device_budget is None:
            return self.limits.node_budget
        return min(self.limits.node_budget, self.device_budget // max(load.num_requests, 1))

    def _keep(self, pool: Candidates, load: StepLoad) -> npt.NDArray[np.bool_]:
        """[num_reqs, capacity] bool: candidates that the published rule keeps, roots excluded."""
        order, prob = pool.best_first()
        depth = np.take_along_axis(pool.depth, order, axis=1)
        above = np.take_along_axis(pool.parent, order, axis=1)
        kept = np.zeros(pool.path_prob.shape, bool)
        kept[:, 0] = True
        size = np.zeros((len(order), 1))
        benefit = np.zeros((len(order), 1))
        for level in range(1, int(depth.max(initial=0)) + 1):
            tried = (depth == level) & (prob > 0) & np.take_along_axis(kept, above, axis=1)
            passed = self._passes(np.where(tried, prob / level, 0.0), size, benefit, load)
            passed &= tried
            if not passed.any():
                break
            np.put_along_axis(kept, order, np.take_along_axis(kept, order, axis=1) | passed, axis=1)
            size += passed.sum(axis=1, keepdims=True)
            benefit += (prob / level).sum(axis=1, where=passed, keepdims=True)
        kept[:, 0] = False
        return kept

    def _passes(
        self,
        gain: npt.NDArray[np.float64],
        size: npt.NDArray[np.float64],
        benefit: npt.NDArray[np.float64],
        load: StepLoad,
    ) -> npt.NDArray[np.bool_]:
        """Which candidates of a level pass, were all better ones of the level kept.

        In a level, benefits fall and costs rise: after the first failure all fail.

        Args:
            gain: [num_reqs, columns] benefit of each candidate, best first, 0 for others.
            size: [num_reqs, 1] nodes kept before the level.
            benefit: [num_reqs, 1] their benefit.
        """
        is_candidate = gain > 0
        before = size + np.cumsum(is_candidate, axis=1) - is_candidate
        benefit_before = benefit + np.cumsum(gain, axis=1) - gain
        num_requests = max(load.num_requests, 1)
        nodes = np.maximum(before, 1.0) * num_requests
        cost_before = self._fitted.total(nodes) / num_requests
        worth = self.alpha * gain * cost_before > benefit_before * self._fitted.marginal(nodes)
        fails = is_candidate & ~(worth | (before == 0)) | (before >= self._budget(load))
        return ~np.logical_or.accumulate(fails, axis=1)
