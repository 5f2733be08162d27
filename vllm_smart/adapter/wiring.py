"""Puts our parts where Model Runner V2 looks for its own, in worker processes that have trees.

These are the names `init_speculator`, `resolve_model_state_cls` and, on GPUs, `ModelCudaGraphManager`,
through which the runner builds its parts; and while such a worker loads its model, the attention
backends. What is done in all processes, and in front ends: `entry.install`.
"""

from typing import Any

from vllm.config import VllmConfig

from vllm_smart.adapter.engine_settings import smart_config
from vllm_smart.seams.host import is_cpu, runs_on_triton
from vllm_smart.seams.rebound import is_ours, marked
from vllm_smart.seams.seam import Where, check_seams
from vllm_smart.seams.table import seams_of_this_version


def install_in_worker() -> None:
    """Make Model Runner V2 build our speculator and model state for the engines that have trees."""
    if is_cpu():
        from vllm_smart.mrv2_cpu import provide_v2_kernels

        provide_v2_kernels()
    from vllm.v1.worker.gpu import model_runner, model_states

    if is_ours(model_runner.init_speculator):
        return
    check_seams(seams_of_this_version(), _of_this_worker())
    from vllm_smart.adapter.drafter.methods import make_speculator
    from vllm_smart.adapter.model_state import TreeModelState

    stock_speculator = model_runner.init_speculator
    stock_state_cls = model_states.resolve_model_state_cls

    def init_speculator(vllm_config: VllmConfig, device: Any, req_states: Any) -> Any:
        config = smart_config(vllm_config)
        if config is None:
            return stock_speculator(vllm_config, device, req_states)
        return make_speculator(vllm_config, config, device, req_states)

    def resolve_model_state_cls(vllm_config: VllmConfig, model: Any) -> Any:
        stock = stock_state_cls(vllm_config, model)
        if smart_config(vllm_config) is None:
            return stock
        return TreeModelState.replacing(stock)

    if runs_on_triton():
        from vllm_smart.adapter.cuda.graphs import TreeGraphManager

        stock_graphs = model_runner.ModelCudaGraphManager

        def graph_manager(vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> Any:
            has_trees = smart_config(vllm_config) is not None
            return (TreeGraphManager if has_trees else stock_graphs)(vllm_config, *args, **kwargs)

        model_runner.ModelCudaGraphManager = graph_manager
    model_runner.init_speculator = marked(init_speculator)
    model_states.resolve_model_state_cls = resolve_model_state_cls


def _of_this_worker() -> set[Where]:
    """Where this worker runs: on CPUs, Triton's interpreter may play a GPU."""
    here = {Where.WORKER}
    if is_cpu():
        here.add(Where.CPU_WORKER)
    if runs_on_triton():
        here.add(Where.GPU_WORKER)
    return here
