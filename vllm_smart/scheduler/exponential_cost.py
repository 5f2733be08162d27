"""The smooth cost model of SMART's paper, fitted to measured costs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_smart.profiling import StepCost

_Floats = npt.NDArray[np.float64]

_SIZES = np.unique(np.geomspace(1, 512, 28).astype(np.int64))  # tree sizes fitted
_RHO = np.linspace(0.05, 1.5, 30)
_GROWTH = np.geomspace(0.02, 6.0, 60)  # delta * (largest size)**rho: the exponent at the end


@dataclass(frozen=True)
class ExponentialCost:
    """Milliseconds of n draft nodes: per_node * n + gamma * (exp(delta * n**rho) - 1).

    Source: arXiv 2604.09731, where lambda is our `per_node`. No intercept: no nodes cost nothing.
    """

    per_node: float  # drafting, > 0
    gamma: float  # verification, as are the others
    delta: float
    rho: float

    @classmethod
    def fit(cls, cost: StepCost) -> "ExponentialCost":
        """Least squares over relative errors, on sizes from 1 to 512.

        Args:
            cost: measured costs; draft levels give `per_node`, target steps the rest.
        """
        draft_ms = np.array([cost.draft_ms(int(size)) for size in _SIZES])
        per_node = float(draft_ms @ _SIZES / (_SIZES @ _SIZES))
        verify_ms = cost.verify_ms(_SIZES)
        rho, growth = (grid.reshape(-1, 1) for grid in np.meshgrid(_RHO, _GROWTH))
        delta = growth / float(_SIZES[-1]) ** rho
        shape = np.expm1(delta * _SIZES**rho) / verify_ms  # [num_fits, num_sizes]
        gamma = shape.sum(axis=1) / (shape * shape).sum(axis=1)
        error = np.square(gamma[:, None] * shape - 1.0).sum(axis=1)
        best = int(error.argmin())
        return cls(per_node, float(gamma[best]), float(delta[best, 0]), float(rho[best, 0]))

    def total(self, num_nodes: _Floats) -> _Floats:
        """Cost of `num_nodes` >= 0."""
        verify: _Floats = self.gamma * np.expm1(self.delta * num_nodes**self.rho)
        return self.per_node * num_nodes + verify

    def marginal(self, num_nodes: _Floats) -> _Floats:
        """Its derivative at `num_nodes` > 0."""
        power = self.delta * num_nodes**self.rho
        slope: _Floats = self.gamma * self.rho * power / num_nodes * np.exp(power)
        return self.per_node + slope
