"""SSSD's rule for how much to verify, for comparison with ours.

Source: arXiv 2411.05894 and its code. As many tokens as a device computes while it reads the weights
are free, and are shared equally over the batch. Differs: the device's ratio of arithmetic to memory is
read off measured step times, not off kernels timed by themselves; candidates are ordered by calibrated
probabilities, not by SSSD's own weights; and requests with fewer candidates are not padded.
"""

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits
from vllm_smart.profiling import StepCost
from vllm_smart.scheduler.budget import Choice, StepLoad
from vllm_smart.scheduler.policy import (
    Allocation,
    BudgetPolicy,
    Candidates,
    FrontierRows,
    branches,
    usable_probs,
)

# What the ratio and a request's tokens, its known one included, are rounded down to.
_RATIOS = 16 * np.array([1, 2, 3, 4, 6, 8, 10, 12, 16, 24])
_TOKENS = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32])
_MANY = 512  # tokens of a step in which arithmetic outweighs all else


class SssdPolicy(BudgetPolicy):
    """The same number of nodes for every request, by the size of the batch alone."""

    def __init__(self, limits: GrowthLimits, cost: StepCost, device_tokens: int | None) -> None:
        """Args:
        limits: as for every policy.
        cost: measured costs.
        device_tokens: that are computed while the weights are read; None: as costs say.
        """
        super().__init__(limits)
        self.cost = cost
        ratio = free_tokens(cost) if device_tokens is None else device_tokens
        self.device_tokens = _rounded_down(ratio, _RATIOS)

    def level(
        self,
        pool: Candidates,
        frontier: FrontierRows,
        child_acceptance: npt.NDArray[np.float32],
        load: StepLoad,
        spent_ms: float,
    ) -> tuple[npt.NDArray[np.bool_], float]:
        """All of them, unless nothing would be verified."""
        is_open = self.num_nodes(load.num_requests) > 0
        return np.full(len(frontier.req), is_open), self.cost.draft_ms(len(frontier.req))

    def choose(self, pool: Candidates, load: StepLoad, spent_ms: float) -> Allocation:
        """As many of each request's best candidates as the batch leaves for one."""
        prob = usable_probs(pool, self.limits)[:, : self.num_nodes(load.num_requests)]
        num_draft_nodes = np.count_nonzero(prob, axis=1)
        total = int(num_draft_nodes.sum())
        tokens = load.num_requests + float(prob.sum(dtype=np.float64))
        ms = float(load.verify_ms(self.cost, np.array([total]))[0]) + spent_ms
        if branches(pool, num_draft_nodes):
            ms += self.cost.branching_ms(load.num_requests)
        return Allocation(num_draft_nodes, Choice(total, tokens, ms, tokens / ms))

    def num_nodes(self, num_requests: int) -> int:
        """Draft nodes of each of so many requests."""
        num_requests = max(num_requests, 1)
        if num_requests == 1:
            most = 32.0
        elif num_requests <= 3:
            most = 64 / num_requests
        else:
            most = (96 if num_requests <= 6 else 512) / num_requests
        tokens = _rounded_down(min(self.device_tokens / num_requests, most), _TOKENS)
        return min(tokens - 1, self.limits.node_budget)


def free_tokens(cost: StepCost) -> float:
    """Tokens whose arithmetic takes as long as all that a step of one token does."""
    one, half, many = cost.verify_ms(np.array([1, _MANY // 2, _MANY]))
    ms_per_token = (many - half) / (_MANY - _MANY // 2)
    return float(one / ms_per_token) if ms_per_token > 0 else float(_RATIOS[-1])


def _rounded_down(value: float, steps: npt.NDArray[np.int64]) -> int:
    """The largest step that is no larger, or the first."""
    return int(steps[max(int(np.searchsorted(steps, value, side="right")) - 1, 0)])
