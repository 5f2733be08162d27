"""The tokens of requests where the host can read them."""

import numpy as np
import torch

from vllm_smart.arrays import HostCopy, between, to_device


class HostHistory:
    """On CPUs these are the engine's own; on GPUs a copy that follows them.

    Attributes:
        tokens: [max_num_reqs, max_model_len] int32 by request-state slot.
    """

    def __init__(self, tokens: torch.Tensor, copies: bool) -> None:
        """Args:
        tokens: the engine's, int32 of the same shape.
        copies: whether to copy them; else they must lie on the host.
        """
        self._original = tokens if copies else None
        self.tokens: np.ndarray = np.zeros(tokens.shape, np.int32) if copies else tokens.numpy()
        self._num_known = np.zeros(len(tokens), np.int64)

    def add_request(self, slot: int) -> None:
        """Another request starts in `slot`."""
        self._num_known[slot] = 0

    def follow(self, slots: np.ndarray, end: np.ndarray) -> None:
        """Have all tokens before `end`, [num_reqs], of requests in `slots`; waits for the device."""
        if self._original is None:
            return
        known = self._num_known[slots]
        req, column = between(known, end)
        row = slots[req]
        place = to_device(row * self.tokens.shape[1] + column, self._original.device)
        (self.tokens[row, column],) = HostCopy(self._original.view(-1)[place]).wait()
        self._num_known[slots] = np.maximum(known, end)
