"""The children that a drafter names where it is known by which noise the target will sample.

The target's sample after a node is the token with the largest score: logit / temperature + noise, and
the noise (`kernels.gumbel`) does not depend on the logits. So the draft's tokens are ranked by the same
sum. Where the draft's logits are the target's, its first choice is the sample, at any temperature. What
the target samples does not depend on it.

A child's probability is its share of exp(GAIN * sqrt(temperature) * score) among the children and the
`NUM_RIVALS` best tokens after them. The further a score is above the next ones, the likelier the
target's logits give the same order. Tokens far behind say nothing about that. See docs/decisions.md.

Source: drafter-invariant coupling, arXiv 2408.07978; differs: several candidates, with probabilities.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

GAIN = 1.3  # fitted on the shipped pair at temperatures from 0.3 to 1.3
NUM_RIVALS = 4


@dataclass(frozen=True)
class SamplingTerms:
    """How requests sample, [max_num_reqs] each, by request-state slot."""

    temperature: npt.NDArray[np.float32]  # 0 = greedy
    seed: npt.NDArray[np.int64]
    top_k: npt.NDArray[np.int32]  # the vocabulary's size where it has no say
    top_p: npt.NDArray[np.float32]  # 1 where it has no say
    draws_53_bits: bool  # of noise, instead of 32

    def arguments(self) -> tuple[Any, ...]:
        """As `cpu` takes them."""
        return tuple(getattr(self, each.name) for each in fields(self))
