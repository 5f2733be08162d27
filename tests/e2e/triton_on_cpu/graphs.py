"""Full graphs without a GPU: a replay runs what was captured once more, on the very same objects.

So it reads tensors where they lay at capture, and everything that the host told it then: as with a
graph, a replay sees nothing of a later step but what was written into those tensors.
"""

from collections import Counter
from typing import Any
from unittest import mock

CAPTURE_SIZES = [1, 2, 4, 8, 14]  # the last: two of the largest trees
replays: Counter[str] = Counter()  # "trees", "plain", and parts of growth


class SimulatedGraph:
    def __init__(self, kind: str, forward: Any) -> None:
        self._kind, self._forward = kind, forward

    def replay(self) -> None:
        from vllm.config.compilation import CUDAGraphMode

        replays[self._kind] += 1
        self._forward(CUDAGraphMode.NONE)


def capture_as_on_gpus(runner: Any) -> None:
    """Let `runner` replay decoding steps from now on."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu import cudagraph_utils, model_runner

    from vllm_smart.adapter.drafter.growth_graphs import GrowthGraph

    mode = CUDAGraphMode.FULL_DECODE_ONLY

    def capture(manager: Any, create_forward_fn: Any, progress_bar_desc: str = "") -> None:
        for desc in manager._capture_descs.get(CUDAGraphMode.FULL, []):
            create_forward_fn(desc, warmup=True)(CUDAGraphMode.NONE)
            forward = create_forward_fn(desc, warmup=False)
            forward(CUDAGraphMode.NONE)
            manager.graphs[desc] = SimulatedGraph(kind_of(desc), forward)
        manager._graphs_captured = True

    def kind_of(desc: Any) -> str:
        if isinstance(desc, GrowthGraph):
            return desc.part.value
        return "plain" if desc.uniform_token_count == 1 else "trees"

    config = runner.vllm_config
    config.compilation_config.cudagraph_capture_sizes = CAPTURE_SIZES
    config.compilation_config.max_cudagraph_capture_size = CAPTURE_SIZES[-1]
    with mock.patch.object(current_platform, "get_global_graph_pool", return_value=None):
        runner.cudagraph_manager = model_runner.ModelCudaGraphManager(
            config,
            runner.device,
            mode,
            decode_query_len=runner.decode_query_len,
        )
        runner.speculator.init_cudagraph_manager(mode)
    with mock.patch.object(cudagraph_utils.CudaGraphManager, "capture", capture):
        runner.cudagraph_manager.capture(
            runner.model,
            runner.model_state,
            runner.input_buffers,
            runner.intermediate_tensors,
            runner.block_tables,
            runner.attn_groups,
            runner.kv_cache_config,
            use_aux_hidden_state_outputs=runner.use_aux_hidden_state_outputs,
        )
        runner.speculator.capture()
