"""What rows on the device are coupled by."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class DeviceNoise:
    """The noise that the target samples with after the rows of a level."""

    seed: torch.Tensor  # [num_reqs] int64
    root_position: torch.Tensor  # [num_reqs] int64
    is_coupled: torch.Tensor  # [num_reqs] int64, 1 for requests whose candidates are ranked by noise
    level: torch.Tensor  # [1] int64, depth of the rows' nodes
    req: torch.Tensor  # [num_rows] int64
    draws_53_bits: bool

    def of_rows(self, rows: slice) -> "DeviceNoise":
        """The same, of some rows alone."""
        return replace(self, req=self.req[rows])
