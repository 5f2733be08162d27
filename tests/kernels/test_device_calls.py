"""What is timed on GPUs runs, so that no time on one is lost; and how much is launched for it."""

import pytest
import torch

from benchmarks import device_calls
from tests.kernels.device import DEVICE
from tests.kernels.launches import counted

# Launches of each, by operators of torch and kernels of ours.
LAUNCHES = {
    "share_out": 3,
    "arrange": 1,
    "walk": 1,
    "compact_kv": 1,
    "begin": 1,
    "expand": 6,  # one of them is the benchmark's own
    "top_tokens": 2,
    "top_tokens_coupled": 2,
    "add_children": 1,
    "choose": 6,
}


@pytest.fixture(scope="module")
def calls() -> dict[str, device_calls.Call]:
    assert device_calls.DEVICE.type == DEVICE.type
    if not torch.cuda.is_available():
        device_calls.NUM_LAYERS, device_calls.VOCAB_SIZE = 2, 5000
    return {**device_calls.verification(2, 9), **device_calls.growth(2, 9)}


@pytest.mark.parametrize("name", [*LAUNCHES, "top_tokens_plain"])
def test_a_timed_call_runs_more_than_once(calls, name):
    assert set(calls) == {*LAUNCHES, "top_tokens_plain"}
    for _ in range(2):
        calls[name]()


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what the interpreter runs")
@pytest.mark.parametrize("name", LAUNCHES)
def test_no_more_is_launched_than_there_must_be(calls, name):
    with counted() as launches:
        calls[name]()
    assert launches.total == LAUNCHES[name]
