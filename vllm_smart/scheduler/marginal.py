"""Policies that verify a node only if it is worth its measured cost."""

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.kernels.grow.cpu import confidence_of, unnamed_share
from vllm_smart.profiling import StepCost, token_counts
from vllm_smart.scheduler.budget import Choice, ChoiceSpec, PrefixRule, StepLoad, StepPrices
from vllm_smart.scheduler.policy import (
    Allocation,
    BudgetPolicy,
    Candidates,
    FrontierRows,
    branches,
    descending,
    split,
    usable_values,
)


class MarginalPolicy(BudgetPolicy):
    """One allocation over the whole batch; a level is drafted if its best outcome beats stopping,
    and as wide as its best outcome is.

    Smart takes the best prefix of all candidates, for the step or for the long run; first_drop stops
    where the rate first falls.
    """

    has_spec = True

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
        self.remembers_choices = self.rule.remembers
        self._known_sizes: dict[int, npt.NDArray[np.int64]] = {}
        self._priced = StepLoad(0)  # the load that `_prices` are of
        self._prices: StepPrices | None = None

    def level(
        self,
        pool: Candidates,
        frontier: FrontierRows,
        child_acceptance: npt.NDArray[np.float32],
        load: StepLoad,
        spent_ms: float,
    ) -> tuple[npt.NDArray[np.bool_], float]:
        """Compare the best rate now with the best rate among the expected children, too.

        Of each number of frontier nodes the likeliest are considered: a wide level costs more.
        """
        num_rows = len(frontier.req)
        if self.drafts_all_levels:
            return np.ones(num_rows, bool), self.cost.draft_ms(num_rows)
        prices = self._prices_of(load, len(pool.path_prob))
        now = usable_values(pool, self.limits).reshape(-1)
        values = pool.path_prob[frontier.req, frontier.node] * pool.weight[frontier.req]
        if pool.evidence is not None:  # n-grams may have named what comes after them
            values *= unnamed_share(pool.path_prob, pool.parent, frontier.req, frontier.node)
        confidence = confidence_of(pool.path_prob, pool.parent, frontier.req, frontier.node)
        best_rows = np.argsort(-values, kind="stable")
        sizes = self._sizes(num_rows)
        level_ms = np.array([self.cost.draft_ms(size) for size in sizes.tolist()])
        branching = self._branching_value(pool, prices)
        index, grow = self.rule.best_level(
            now,
            values[best_rows],
            child_acceptance[confidence[best_rows], : self.limits.children],
            sizes,
            level_ms,
            prices,
            spent_ms,
            branching,
        )
        stop = self.rule(descending(now), prices, spent_ms, branching)
        expanded = np.zeros(num_rows, bool)
        if not self.rule.prefers(grow, stop, self.min_gain):
            return expanded, 0.0
        expanded[best_rows[: sizes[index]]] = True
        return expanded, float(level_ms[index])

    def _sizes(self, num_rows: int) -> npt.NDArray[np.int64]:
        """Numbers of rows to consider for a level: 1, 2, 3, 4, 6, 8, 12, ..., all."""
        if num_rows not in self._known_sizes:
            self._known_sizes[num_rows] = np.array(token_counts(num_rows))
        return self._known_sizes[num_rows]

    def choose(self, pool: Candidates, load: StepLoad, spent_ms: float) -> Allocation:
        """The best prefix of the batch's candidates, shared out."""
        values = usable_values(pool, self.limits)
        choice = self._best(pool, values, load, spent_ms)
        self.rule.took(choice)
        return Allocation(split(values, choice.num_nodes), choice)

    def would_choose(self, pool: Candidates, load: StepLoad, spent_ms: float) -> Choice:
        """What `choose` would, if there were no other candidates than these."""
        return self._best(pool, usable_values(pool, self.limits), load, spent_ms)

    def prefers(self, grow: Choice, stop: Choice) -> bool:
        """Whether what is drafted for `grow` is worth it."""
        return self.rule.prefers(grow, stop, self.min_gain)

    def _best(
        self, pool: Candidates, values: npt.NDArray[np.float32], load: StepLoad, spent_ms: float
    ) -> Choice:
        prices = self._prices_of(load, len(pool.path_prob))
        branching = self._branching_value(pool, prices)
        return self.rule(descending(values.reshape(-1)), prices, spent_ms, branching)

    def spec(self, load: StepLoad, num_reqs: int) -> ChoiceSpec:
        """The rule, and what the step costs."""
        self.rule.aim(load)
        prices = StepPrices.of(load, self.cost, num_reqs * self.limits.node_budget)
        return ChoiceSpec(prices, *self.rule.aimed_at)

    def _prices_of(self, load: StepLoad, num_reqs: int) -> StepPrices:
        """The same for all calls of a step, which come with one load."""
        if self._prices is None or load is not self._priced:
            self._priced = load
            self._prices = StepPrices.of(load, self.cost, num_reqs * self.limits.node_budget)
            self.rule.aim(load)
        return self._prices

    def _branching_value(self, pool: Candidates, prices: StepPrices) -> float:
        if not prices.branching_ms:
            return 0.0
        return float((pool.off_chain() * pool.weight).max(initial=0.0))


class EqualSharePolicy(MarginalPolicy):
    """As `MarginalPolicy`, but every request gets as many nodes as the others."""

    has_spec = False

    def choose(self, pool: Candidates, load: StepLoad, spent_ms: float) -> Allocation:
        """The number of nodes each that emits most tokens per millisecond, over all numbers."""
        values = usable_values(pool, self.limits)
        counts = np.concatenate(([0], np.cumsum(np.count_nonzero(values, axis=0))))
        served = load.num_served + np.concatenate(([0.0], np.cumsum(values.sum(axis=0))))
        ms = load.verify_ms(self.cost, counts) + spent_ms
        each = int((served / ms).argmax())
        num_draft_nodes = np.minimum(each, np.count_nonzero(values, axis=1))
        predicted_ms = float(ms[each])
        if branches(pool, num_draft_nodes):
            predicted_ms += self.cost.branching_ms(load.num_requests)
        prices = self._prices_of(load, len(pool.path_prob))
        choice = prices.choice(int(counts[each]), float(served[each]), predicted_ms)
        return Allocation(num_draft_nodes, choice)
