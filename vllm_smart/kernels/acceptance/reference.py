"""Acceptance of a level's candidates in plain torch; for tests."""

import torch

from vllm_smart.kernels.acceptance.device import DeviceAcceptance


def level_acceptance(
    acceptance: DeviceAcceptance, level: torch.Tensor, req: torch.Tensor, draft_prob: torch.Tensor
) -> torch.Tensor:
    """Acceptance given the parent's, each child asked about after those before it.

    Args:
        acceptance: of the requests.
        level: [1] int64, counted from 0, the roots' children.
        req: [num_rows] int64 requests.
        draft_prob: [num_rows, children] float32, the draft's top choice first.

    Returns:
        [num_rows, children] float32, at most 1 together; 0 stays 0, as ruled out.
    """
    is_child = draft_prob > 0  # which NaN is not
    prob = torch.where(is_child, draft_prob, 0.0)
    left, smallest = 1.0 - (prob.cumsum(1) - prob), acceptance.smallest
    share = torch.where(left > prob, prob / left, 1.0).clamp(smallest, 1.0 - smallest)
    of = acceptance.is_coupled[req], level
    z = acceptance.intercept[of] + acceptance.offset[req].unsqueeze(1)
    z = z + acceptance.slope[of] * (share / (1.0 - share)).log()
    asked = torch.where(is_child, z.sigmoid(), 0.0)
    rejected = torch.ones_like(asked)
    rejected[:, 1:] = (1.0 - asked[:, :-1]).cumprod(1)
    never_increasing = torch.where(is_child, rejected * asked, 1.0).cummin(1).values
    return torch.where(is_child, never_increasing, 0.0)
