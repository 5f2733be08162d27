"""Draft probabilities as acceptance probabilities on the device; see `scheduler.AcceptanceModel`."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DeviceAcceptance:
    """Logistic regressions of logit(draft_prob), as the host has learnt them so far."""

    intercept: torch.Tensor  # [depth, children] float32, by level and rank
    slope: torch.Tensor  # [depth, children] float32
    offset: torch.Tensor  # [num_reqs] float32, added to the intercept
    smallest: float  # probabilities are kept this far from 0 and 1; NaN is taken for 0

    def of_level(self, level: int, req: torch.Tensor, draft_prob: torch.Tensor) -> torch.Tensor:
        """Acceptance given the parent's: [num_rows, children] float32; 0 stays 0, as ruled out.

        Args:
            level: counted from 0, the roots' children.
            req: [num_rows] int64 requests.
            draft_prob: [num_rows, children] float32, the draft's top choice first.
        """
        kept = torch.where(draft_prob > self.smallest, draft_prob, self.smallest)
        kept = kept.clamp(max=1.0 - self.smallest)
        z = self.intercept[level] + self.offset[req].unsqueeze(1)
        z = z + self.slope[level] * (kept / (1.0 - kept)).log()
        return torch.where(draft_prob > 0, z.sigmoid(), 0.0)
