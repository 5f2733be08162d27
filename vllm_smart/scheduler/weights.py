"""What a token of each request is worth to the step: 1 for throughput, more for some if asked."""

import numpy as np
import numpy.typing as npt

from vllm_smart.config import SmartPolicyConfig, TpotObjective

_Floats = npt.NDArray[np.float32]

_RATE = 0.1  # of the moving means, per step: the last ten steps or so count
_STRONGEST = 4.0  # a request far behind its target counts so much more than others, squared


class RequestWeights:
    """Weights by request-state slot: the user's, times what the objective makes of recent steps.

    throughput: the user's alone. latency: the mean over requests of their time per token falls
    fastest where tokens per step are few, so weights go with 1 / tokens**2. A target of
    milliseconds per token: requests behind it weigh more, by the square of how far.
    """

    def __init__(self, max_num_reqs: int) -> None:
        """Args:
        max_num_reqs: number of slots.
        """
        self._given = np.ones(max_num_reqs, np.float32)
        self._tokens = np.ones(max_num_reqs, np.float32)  # per step, moving means
        self._ms = np.zeros(max_num_reqs, np.float32)

    def add_request(self, slot: int, weight: float) -> None:
        """A request starts in `slot`; the user gives its tokens `weight` > 0."""
        self._given[slot] = weight
        self._tokens[slot], self._ms[slot] = 1.0, 0.0

    def observe(self, slots: npt.NDArray[np.integer], num_tokens: _Floats, step_ms: float) -> None:
        """Requests in `slots` [n] emitted `num_tokens` [n] >= 1 in a step of `step_ms`."""
        fresh = self._ms[slots] == 0.0
        rate = np.where(fresh, np.float32(1.0), np.float32(_RATE))
        self._tokens[slots] += rate * (num_tokens - self._tokens[slots])
        self._ms[slots] += rate * (np.float32(step_ms) - self._ms[slots])

    def of(self, slots: npt.NDArray[np.integer], policy: SmartPolicyConfig) -> _Floats | None:
        """[n] weights of the requests in `slots`, 1 on average; None where all are alike."""
        weights = self._given[slots]
        if policy.objective == "latency":
            weights = weights / np.square(self._tokens[slots])
        elif isinstance(policy.objective, TpotObjective):
            behind = self._ms[slots] / self._tokens[slots] / policy.objective.tpot_ms
            weights = weights * np.square(behind.clip(1.0, _STRONGEST))
        if not len(weights) or (weights == weights[0]).all():
            return None
        normalised: _Floats = weights * (len(weights) / weights.sum())
        return normalised.astype(np.float32)
