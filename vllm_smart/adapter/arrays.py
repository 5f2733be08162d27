"""Small arrays on their way between the host and the device where the models run."""

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


class HostCopy:
    """Tensors of the device as arrays, some time after: only `wait` waits."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        """Start copying what `tensors` hold once all work queued so far is done."""
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record()

    def wait(self) -> list[np.ndarray]:
        """The arrays, in the order of the tensors; views of these where the device is the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [tensor.numpy() for tensor in self._tensors]
