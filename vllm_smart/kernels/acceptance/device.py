"""What acceptance on the device is read by."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DeviceAcceptance:
    """Logistic regressions of logit(share), as the host has learnt them so far."""

    intercept: torch.Tensor  # [2, depth, children] float32; coupled or not, by level and rank
    slope: torch.Tensor  # [2, depth, children] float32
    offset: torch.Tensor  # [num_reqs] float32, added to the intercept
    is_coupled: torch.Tensor  # [num_reqs] int64, 1 for requests whose candidates are ranked by noise
    smallest: float  # probabilities are kept this far from 0 and 1; NaN is taken for 0
