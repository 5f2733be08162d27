"""Full graphs: which there are, and that replays read what was captured where it lay."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.adapter.capturing import config_that_captures
from tests.kernels.device import DEVICE
from vllm_smart.tree import TreeBatch

pytestmark = pytest.mark.vllm

MAX_REQS, QUERY_LEN, SIZES = 4, 6, [1, 2, 4, 8, 16, 24, 32]


@pytest.fixture
def manager(monkeypatch):
    """The manager of an engine that captures full graphs of decoding; nothing is captured."""
    pytest.importorskip("triton")
    from vllm.config.compilation import CUDAGraphMode

    from vllm_smart.adapter.cuda.graphs import TreeGraphManager

    config = config_that_captures(monkeypatch, MAX_REQS, SIZES)
    mode = CUDAGraphMode.FULL_AND_PIECEWISE
    manager = TreeGraphManager(config, torch.device("cpu"), mode, QUERY_LEN, varlen_decode=False)
    manager._graphs_captured = True
    return manager


def dispatch(manager, rows: list[int], has_prefill: bool = False):
    """The graph of a step whose requests have so many rows, as the runner asks for it."""
    from vllm.v1.worker.utils import get_uniform_decode_token_count

    longest, total = max(rows), sum(rows)
    uniform = get_uniform_decode_token_count(len(rows), total, longest, not has_prefill)
    max_query_len = None if has_prefill else longest
    return manager.dispatch(len(rows), total, uniform, 0, max_query_len=max_query_len)


def test_drafts_of_any_shape_have_a_full_graph(manager):
    from vllm.config.compilation import CUDAGraphMode

    for rows in ([6], [6, 1, 3], [2, 2], [1, 5, 1, 1], [6, 6, 6, 6]):
        graph = dispatch(manager, rows)
        assert graph.cg_mode == CUDAGraphMode.FULL
        assert graph.max_query_len == QUERY_LEN
        assert graph.num_tokens == min(size for size in SIZES if size >= sum(rows))
        assert graph.num_reqs >= len(rows)


def test_plain_decoding_has_graphs_of_its_own(manager):
    for num_reqs, padded in ((1, 1), (2, 2), (3, 4), (4, 4)):
        graph = dispatch(manager, [1] * num_reqs)
        assert (graph.uniform_token_count, graph.max_query_len) == (1, None)
        assert (graph.num_reqs, graph.num_tokens) == (padded, padded)


def test_prefills_have_none(manager):
    from vllm.config.compilation import CUDAGraphMode

    for rows in ([20], [6, 2], [9, 1]):
        assert dispatch(manager, rows, has_prefill=True).cg_mode == CUDAGraphMode.PIECEWISE


def test_all_graphs_that_are_asked_for_are_captured_the_largest_first(manager):
    from vllm.config.compilation import CUDAGraphMode

    captured = manager._capture_descs[CUDAGraphMode.FULL]
    sizes = [graph.num_tokens for graph in captured]
    assert sizes == sorted(sizes, reverse=True)
    steps = ([6], [6, 1, 3], [1], [1, 1], [1] * 3, [6] * 4)
    assert {dispatch(manager, rows) for rows in steps} <= set(captured)
    assert len(set(captured)) == len(captured)


def _builder(max_model_len: int):
    from vllm_smart.attention.gpu import TritonTreeMetadataBuilder

    builder = TritonTreeMetadataBuilder.__new__(TritonTreeMetadataBuilder)
    builder.kv_cache_spec = SimpleNamespace(num_kv_heads=2)
    builder.num_heads_q, builder.device = 4, torch.device("cpu")
    builder.vllm_config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=max_model_len))
    return builder


def _step_to_capture(num_rows: int):
    return SimpleNamespace(
        query_start_loc=torch.zeros(MAX_REQS + 1, dtype=torch.int32),
        seq_lens=torch.zeros(MAX_REQS, dtype=torch.int32),
        block_table=torch.zeros(MAX_REQS, 3, dtype=torch.int32),
        num_actual_tokens=num_rows,
    )


def test_a_graph_that_one_long_request_may_fill_splits_its_keys(monkeypatch):
    """Whatever number of requests it is padded to: those without rows cost next to nothing."""
    pytest.importorskip("triton")
    from vllm_smart.attention import gpu
    from vllm_smart.step.device_tree_store import DeviceTreeStore

    monkeypatch.setattr(gpu, "_num_sms", lambda device: 132)
    trees = DeviceTreeStore(MAX_REQS, max_rows=4096, max_nodes=70, device=torch.device("cpu"))
    builder = _builder(max_model_len=65536)
    splits = [
        builder.for_graph(_step_to_capture(num_rows), QUERY_LEN, trees).tree.num_splits
        for num_rows in (4, 512, 4096)
    ]
    assert splits[0] > splits[1] >= splits[2] == 1


def test_a_graph_is_timed_with_the_requests_asked_for():
    """Not with as many as it was captured for, all of which would read the context."""
    from vllm_smart.adapter.model_state import TreeModelState

    dummy = SimpleNamespace(
        num_reqs=MAX_REQS,
        query_start_loc=torch.arange(0, 5 * 2, 2, dtype=torch.int32),
        seq_lens=torch.full((MAX_REQS,), 102, dtype=torch.int32),
    )
    TreeModelState._arrange(None, dummy, [5, 2], 100)
    assert dummy.query_start_loc.tolist() == [0, 5, 7, 7, 7]
    assert dummy.seq_lens.tolist() == [105, 102, 0, 0]


def test_what_a_graph_reads_stays_where_it_was_captured():
    """Other trees are written into the same memory; a step without trees is causal."""
    pytest.importorskip("triton")
    from vllm_smart.step import TreeSizes
    from vllm_smart.step.device_tree_store import DeviceTreeStore

    trees = DeviceTreeStore(MAX_REQS, max_rows=32, max_nodes=70, device=DEVICE)
    builder = _builder(max_model_len=512)
    step = _step_to_capture(num_rows=16)
    captured = builder.for_graph(step, QUERY_LEN, trees)
    assert captured.num_tree_rows == 16
    assert captured.rest is None
    assert not captured.tree.tail_lens.any()
    for name in ("query_start_loc", "seq_lens", "block_table"):
        assert getattr(captured.tree, name).data_ptr() == getattr(step, name).data_ptr()

    def ints(*values: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    parent = torch.stack([ints(-1, 0, 0, 1), ints(-1, 0, 0, 0)])
    depth = torch.stack([ints(0, 1, 1, 2), ints(0, 1, 1, 1)])
    slots = ints(2, 0, dtype=torch.int64)
    columns = (parent.long(), parent, depth, depth, depth.float(), depth.float(), depth)
    arrays = (each.cpu().numpy() for each in columns)
    trees.put_from_host(slots.cpu().numpy(), TreeBatch(*arrays, np.array([4, 3])), max_depth=2)
    sequential = ints(*range(16, 20), *range(27, 30), dtype=torch.int64)
    batch = SimpleNamespace(
        num_reqs=2,
        idx_mapping=slots,
        cu_num_logits=ints(0, 4, 7),
        query_start_loc=ints(0, 4, 7),
        positions=sequential,
        logits_indices=torch.arange(7),
    )
    positions = sequential.clone()
    trees.arrange(batch, positions)
    again = builder.for_graph(step, QUERY_LEN, trees)
    for name in ("tail_lens", "ancestor_mask"):
        assert getattr(again.tree, name).data_ptr() == getattr(captured.tree, name).data_ptr()
    assert again.tree.num_splits == captured.tree.num_splits
    assert captured.tree.tail_lens.tolist() == [4, 3, 0, 0]
    assert captured.tree.ancestor_mask[:7, 0].tolist() == [1, 3, 5, 11, 1, 3, 5]
    assert positions.tolist() == [16, 17, 17, 18, 27, 28, 28]
    # Where no graph is replayed, the same buffers serve.
    eager_step = SimpleNamespace(**{**vars(step), "num_actual_tokens": 7})
    eager = builder.with_trees(eager_step, TreeSizes(2, 7, 4, 30), trees)
    assert eager.tree.tail_lens.data_ptr() == captured.tree.tail_lens.data_ptr()
    trees.clear()
    assert not captured.tree.tail_lens.any()
