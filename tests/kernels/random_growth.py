"""Growing trees with random contents on the device."""

from dataclasses import replace

import numpy as np
import torch

from tests.kernels.device import DEVICE
from vllm_smart.kernels.grow.device import DeviceCandidates, DeviceDraftSlots


def on_device(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


def copy_of(room):
    """The same tensors elsewhere."""
    tensors = {k: v.clone() for k, v in vars(room).items() if isinstance(v, torch.Tensor)}
    return replace(room, **tensors)


def random_candidates(rng, num_reqs: int, depth: int, width: int, children: int) -> DeviceCandidates:
    """In a larger batch's room; probabilities in eighths, so that many are tied, and many are 0."""
    room = DeviceCandidates.room(num_reqs + 2, depth, width, children, DEVICE)
    room.path_prob.copy_(on_device(rng.integers(0, 6, room.path_prob.shape) / np.float32(8)))
    room.token.copy_(on_device(rng.integers(0, 10**6, room.token.shape)))
    room.source.zero_()
    return room.of_first(num_reqs)


def random_slots(rng, num_reqs: int, max_slots: int, mask_rows: int) -> DeviceDraftSlots:
    """As a level before has left them."""
    room = DeviceDraftSlots.room(num_reqs + 2, mask_rows, max_slots, DEVICE)
    slots = room.of_first(num_reqs)
    slots.prefix_len.copy_(on_device(rng.integers(1, 100, num_reqs)))
    slots.window_start.copy_(slots.prefix_len // 2)
    slots.capacity.copy_(on_device(rng.integers(0, max_slots + 1, num_reqs)))
    slots.used.copy_(torch.minimum(slots.capacity, on_device(rng.integers(0, 3, num_reqs))))
    slots.row_start.copy_(on_device(np.cumsum([0, *rng.integers(0, 3, num_reqs)])))
    slots.mask.copy_(on_device(rng.integers(0, 2**31, slots.mask.shape, np.int32)))
    return slots
