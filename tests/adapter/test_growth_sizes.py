"""The few shapes of growth on the device, their graphs, and where what they read arrives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adapter.capturing import config_that_captures
from tests.kernels.device import DEVICE

pytestmark = pytest.mark.vllm


@settings(deadline=None)
@given(
    max_num_reqs=st.integers(1, 1024),
    width=st.integers(1, 9),
    num_reqs=st.integers(1, 1024),
    share=st.floats(0, 1),
)
def test_padding_fits_and_never_more_than_doubles(max_num_reqs, width, num_reqs, share):
    from vllm_smart.adapter.drafter.growth_sizes import GrowthSizes

    num_reqs = min(num_reqs, max_num_reqs)
    sizes = GrowthSizes(max_num_reqs, max_num_reqs * width, width)
    padded = sizes.reqs(num_reqs)
    assert num_reqs <= padded <= min(2 * num_reqs, max_num_reqs)
    num_rows = max(1, int(share * num_reqs * width))
    rows = sizes.rows(padded, num_rows)
    assert num_rows <= rows <= padded * width
    assert rows <= 2 * max(num_rows, padded)
    captured = set(sizes.captured_levels())
    assert len(captured) <= 9 * 5
    if padded <= 256 and rows <= 512:
        assert (padded, rows) in captured
        assert padded in set(sizes.captured_reqs())


def test_rows_never_exceed_what_the_drafter_takes():
    from vllm_smart.adapter.drafter.growth_sizes import GrowthSizes

    sizes = GrowthSizes(max_num_reqs=48, most_rows=64, width=8)
    assert sizes.reqs(33) == 48
    assert sizes.rows(48, 50) == 64
    assert max(rows for _, rows in sizes.captured_levels()) == 64


def test_a_part_without_a_graph_is_queued_instead(monkeypatch):
    pytest.importorskip("triton")
    from vllm.config.compilation import CUDAGraphMode

    from vllm_smart.adapter.drafter.growth_graphs import GrowthGraph, GrowthGraphManager, GrowthPart
    from vllm_smart.adapter.drafter.growth_sizes import GrowthSizes

    config = config_that_captures(monkeypatch, 4, [1, 2, 4])
    sizes = GrowthSizes(max_num_reqs=4, most_rows=8, width=2)

    def manager(mode: CUDAGraphMode) -> GrowthGraphManager:
        return GrowthGraphManager(config, torch.device("cpu"), mode, sizes)

    for mode in (CUDAGraphMode.FULL_AND_PIECEWISE, CUDAGraphMode.FULL_DECODE_ONLY):
        graphs = manager(mode)._capture_descs[CUDAGraphMode.FULL]
        # Levels of 4, 2 and 1 requests with 1 or 2 rows each; three other parts of each size.
        assert len(graphs) == 3 * 2 + 3 * 3
        assert len(set(graphs)) == len(graphs)
    assert not manager(CUDAGraphMode.PIECEWISE)._capture_descs

    with_graphs, calls = manager(CUDAGraphMode.FULL_DECODE_ONLY), []
    level = GrowthGraph.of(GrowthPart.LEVEL, 2, 4)
    with_graphs.graphs[level] = SimpleNamespace(replay=lambda: calls.append("replayed"))
    with_graphs.run(level, lambda: calls.append("queued"))
    with_graphs.run(GrowthGraph.of(GrowthPart.LEVEL, 2, 3), lambda: calls.append("queued"))
    assert calls == ["replayed", "queued"]


def test_what_is_sent_arrives_where_its_like_arrived_before():
    from vllm_smart.adapter.arrays import Mailbox

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
