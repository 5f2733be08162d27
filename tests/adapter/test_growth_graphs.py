"""Graphs of growth on the device."""

from types import SimpleNamespace

import pytest
import torch

from tests.adapter.capturing import config_that_captures

pytestmark = pytest.mark.vllm


def test_a_part_without_a_graph_is_queued_instead(monkeypatch):
    pytest.importorskip("triton")
    from vllm.config.compilation import CUDAGraphMode

    from vllm_smart.adapter.drafter.growth_graphs import GrowthGraph, GrowthGraphManager, GrowthPart
    from vllm_smart.growth.sizes import GrowthSizes

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
