"""Draft probabilities as acceptance probabilities on the device; see `scheduler.AcceptanceModel`."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DeviceAcceptance:
    """Logistic regressions of logit(share), as the host has learnt them so far.

    The plain reference, and the meaning of it all, is `kernels.choices.level_acceptance`.
    """

    intercept: torch.Tensor  # [depth, children] float32, by level and rank
    slope: torch.Tensor  # [depth, children] float32
    offset: torch.Tensor  # [num_reqs] float32, added to the intercept
    smallest: float  # probabilities are kept this far from 0 and 1; NaN is taken for 0

    def of_level(
        self, level: torch.Tensor, req: torch.Tensor, draft_prob: torch.Tensor
    ) -> torch.Tensor:
        """Acceptance given the parent's, each child asked about after those before it.

        Args:
            level: [1] int64, counted from 0, the roots' children.
            req: [num_rows] int64 requests.
            draft_prob: [num_rows, children] float32, the draft's top choice first.

        Returns:
            [num_rows, children] float32, at most 1 together; 0 stays 0, as ruled out.
        """
        is_child = draft_prob > 0  # which NaN is not
        prob = torch.where(is_child, draft_prob, 0.0)
        left = 1.0 - (prob.cumsum(1) - prob)
        share = torch.where(left > prob, prob / left, 1.0).clamp(self.smallest, 1.0 - self.smallest)
        z = self.intercept[level] + self.offset[req].unsqueeze(1)
        z = z + self.slope[level] * (share / (1.0 - share)).log()
        asked = torch.where(is_child, z.sigmoid(), 0.0)
        rejected = torch.ones_like(asked)
        rejected[:, 1:] = (1.0 - asked[:, :-1]).cumprod(1)
        never_increasing = torch.where(is_child, rejected * asked, 1.0).cummin(1).values
        return torch.where(is_child, never_increasing, 0.0)
