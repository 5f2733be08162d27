"""What a step's walks through its trees have found: on the device, and some time after on the host."""

from functools import cached_property

import numpy as np
import torch

from vllm_smart.arrays import HostCopy

NEVER_SAMPLED = -2  # a draft token that no sample equals


class Walk:
    """The accepted paths of one batch, requests in batch order.

    Attributes:
        path: [num_reqs, columns] int32 nodes visited, root first, -1 beyond; on the device.
        num_accepted: [num_reqs] int32 draft nodes visited; on the device.
        emitted: [num_reqs, columns] int64 the target's tokens along the path; on the device.
    """

    def __init__(self, path: torch.Tensor, num_accepted: torch.Tensor, emitted: torch.Tensor) -> None:
        self.path, self.num_accepted, self.emitted = path, num_accepted, emitted
        self._copy = HostCopy(path, num_accepted)

    @property
    def is_on_host(self) -> bool:
        """Whether `on_host` has been looked at."""
        return "on_host" in vars(self)

    @cached_property
    def on_host(self) -> tuple[np.ndarray, np.ndarray]:
        """`path`, no wider than the longest one, and `num_accepted`. The first look may wait."""
        path, num_accepted = self._copy.wait()
        return path[:, : int(num_accepted.max()) + 1], num_accepted
