"""Arrays on their way to the device."""

import numpy as np

from tests.kernels.device import DEVICE
from vllm_smart.arrays import Mailbox


def test_what_is_sent_arrives_where_its_like_arrived_before():
    def arrays(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [
            rng.integers(0, 99, (3, 5)),
            rng.random((2, 3), np.float32),
            np.zeros((0, 4), np.float32),
            rng.random(7),
        ]

    mailbox = Mailbox(Mailbox.size_of(*arrays(0)), DEVICE)
    first = mailbox.send(*arrays(1))
    for sent, arrived in zip(arrays(1), first, strict=True):
        assert np.array_equal(arrived.cpu().numpy(), sent)
    mailbox.send(*[array[:1] for array in arrays(2)])  # a smaller batch
    second = mailbox.send(*arrays(3))
    for sent, arrived, before in zip(arrays(3), second, first, strict=True):
        assert arrived.data_ptr() == before.data_ptr()
        assert np.array_equal(before.cpu().numpy(), sent)
