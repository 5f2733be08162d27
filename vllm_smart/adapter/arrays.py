"""Small arrays of the host, on the device where the models run."""

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """`array` as a tensor on `device`; the host does not wait. A view where the device is the CPU."""
    tensor = torch.from_numpy(array)
    # Only copies from pinned memory leave the host free to go on.
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def copy_to(target: torch.Tensor, array: np.ndarray) -> None:
    """Write `array` into `target`, which has its shape; the host does not wait."""
    target.copy_(to_device(array, target.device))
