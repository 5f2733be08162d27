"""How likely a candidate is that several sources speak for: one regression, learnt as texts go on."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vllm_smart.kernels.evidence import FEATURES

_Doubles = npt.NDArray[np.float64]

# Weights of `FEATURES` before anything is learnt: `python -m training.evidence_prior` fits them.
_PRIOR = np.array(
    [
        *(-0.89, 2.42, 0.75, -1.13),  # constant; the drafter's
        *(-2.06, 1.26, 0.17, 0.65),  # n-grams'
        *(1.24, 0.19, -1.33, -0.73, 0.20, 0.02),  # both, and what is beside them
        *(-0.68, 0.04, 0.11),  # at a temperature
        *(-0.13, -0.46, -0.07, -0.04),  # both, by what each says
    ]
)
_PRIOR_OBSERVATIONS = 40.0  # that the prior is worth, in each weight
_PER_OBSERVATION = 0.1  # variance of a label times a feature's square, as they are on average
_MAX_STEP = 0.5  # per update and weight, against overshooting on the first data
_LARGEST = 12.0


class EvidenceModel:
    """sigmoid(weights * features): how likely the target samples a candidate, its parent accepted.

    An update is one Newton step on the log posterior, as in `OnlineLogistic`: what was seen before
    counts as a Gaussian around the present weights, forgotten at a rate of 1 / window per observation.
    """

    def __init__(self, window: int) -> None:
        """Args:
        window: observations remembered, > 1.
        """
        self.weights = _PRIOR.copy()
        self._keep = 1.0 - 1.0 / window
        self._information = np.zeros((len(FEATURES), len(FEATURES)))
        self._prior_information = np.eye(len(FEATURES)) * _PRIOR_OBSERVATIONS * _PER_OBSERVATION

    def learnt(self) -> dict[str, _Doubles]:
        """The state, as 2-D arrays by name."""
        return {"evidence_weights": self.weights[None], "evidence_information": self._information}

    def relearn(self, learnt: Mapping[str, _Doubles]) -> None:
        """Go on from a state of this shape."""
        self.weights = learnt["evidence_weights"][0].clip(-_LARGEST, _LARGEST)
        self._information = learnt["evidence_information"].copy()

    def merged(self, states: Sequence[Mapping[str, _Doubles]]) -> dict[str, _Doubles]:
        """As `OnlineLogistic.merged`."""
        information = sum(
            (state["evidence_information"] for state in states), np.zeros_like(self._information)
        )
        said = np.zeros_like(self.weights)
        for state in states:
            weights = state["evidence_weights"][0]
            said += (state["evidence_information"] + self._prior_information) @ weights
            said -= self._prior_information @ _PRIOR
        most = 0.25 / (1.0 - self._keep)  # of a label's variance, over a window
        kept = min(1.0, most / max(float(information[0, 0]), most))
        pull = said * kept + self._prior_information @ _PRIOR
        weights = np.linalg.solve(information * kept + self._prior_information, pull)
        return {
            "evidence_weights": weights.clip(-_LARGEST, _LARGEST)[None],
            "evidence_information": information * kept,
        }

    def predict(self, features: _Doubles) -> _Doubles:
        """[num_candidates] probabilities, of [num_candidates, features]."""
        predicted: _Doubles = 1.0 / (1.0 + np.exp(-(features @ self.weights)))
        return predicted

    def observe(self, features: _Doubles, is_next: npt.NDArray[np.bool_]) -> None:
        """Learn from candidates whose parents the text has passed.

        Args:
            features: [num_candidates, features] as they were predicted by.
            is_next: [num_candidates] whether the text went on with each.
        """
        if not len(features):
            return
        predicted = self.predict(features)
        kept = self._keep ** len(features)
        self._information *= kept
        weighted = features * (predicted * (1.0 - predicted))[:, None]
        self._information += features.T @ weighted
        # What was forgotten no longer holds the weights against their prior.
        pull = (1.0 - kept) * self._prior_information @ (_PRIOR - self.weights)
        gradient = features.T @ (is_next - predicted) + pull
        step = np.linalg.solve(self._information + self._prior_information, gradient)
        self.weights = (self.weights + step.clip(-_MAX_STEP, _MAX_STEP)).clip(-_LARGEST, _LARGEST)
