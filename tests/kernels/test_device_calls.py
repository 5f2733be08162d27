"""What is timed on GPUs runs, so that no time on one is lost."""

import pytest
import torch

from benchmarks import device_calls
from tests.kernels.device import DEVICE

CALLS = (
    *("share_out", "arrange", "walk", "compact_kv"),
    *("begin", "expand", "top_tokens", "top_tokens_plain", "add_children", "choose"),
)


@pytest.fixture(scope="module")
def calls() -> dict[str, device_calls.Call]:
    assert device_calls.DEVICE.type == DEVICE.type
    if not torch.cuda.is_available():
        device_calls.NUM_LAYERS, device_calls.VOCAB_SIZE = 2, 5000
    return {**device_calls.verification(2, 9), **device_calls.growth(2, 9)}


@pytest.mark.parametrize("name", CALLS)
def test_a_timed_call_runs_more_than_once(calls, name):
    assert set(calls) == set(CALLS)
    for _ in range(2):
        calls[name]()
