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
    tensor = torch.from_numpy(array)
    if target.device.type != "cpu":
        # Of its type already: what is converted on the way is not pinned.
        tensor = tensor.to(target.dtype).pin_memory()
    target.copy_(tensor, non_blocking=True)


def between(first: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers from `first` to before `end`, [num_pairs] each: (pair [n], number [n])."""
    count = np.maximum(end - first, 0)
    pair = np.repeat(np.arange(len(first)), count)
    return pair, np.arange(len(pair)) - (np.cumsum(count) - count - first)[pair]


class Mailbox:
    """Where arrays of the host arrive on the device, several in one transfer.

    Arrays of the same shapes and types arrive where those before them did, so that graphs find them.
    """

    _ALIGNMENT = 16  # bytes, of each array

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        """Make room for arrays of `num_bytes` together, each rounded up to the alignment."""
        self._room = torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    @classmethod
    def size_of(cls, *arrays: np.ndarray) -> int:
        """Bytes that these arrays need together."""
        return sum(-(-array.nbytes // cls._ALIGNMENT) * cls._ALIGNMENT for array in arrays)

    def send(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        """`arrays` on the device, until the next call writes over them; the host does not wait."""
        packed = np.empty(self.size_of(*arrays), np.uint8)
        views, begin = [], 0
        for array in arrays:
            end = begin + array.nbytes
            packed[begin:end] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
            dtype = torch.from_numpy(array).dtype
            views.append(self._room[begin:end].view(dtype).view(array.shape))
            begin += self.size_of(array)
        copy_to(self._room[: len(packed)], packed)
        return views


class HostCopy:
    """Tensors of the device as arrays, some time after: only `wait` waits."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        """Start copying what `tensors` hold once all work queued so far is done."""
        self._tensors = [tensor.to("cpu", non_blocking=True, copy=True) for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record()

    def wait(self) -> list[np.ndarray]:
        """The arrays, in the order of the tensors."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [tensor.numpy() for tensor in self._tensors]
