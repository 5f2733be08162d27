"""Puts our parts where vLLM looks for its own.

In all processes: `EngineArgs.create_engine_config` (rewrites our speculative config). On CPUs also the
gates of Model Runner V2, see `mrv2_cpu.host`.

In a front end whose engine has trees: `InputProcessor.process_inputs` (refuses requests that the
runner could not serve). It, and all the rest, looks at the configuration of each engine.

In worker processes, by `install_in_worker` and only where trees are in use: the names
`init_speculator`, `resolve_model_state_cls` and, on GPUs, `ModelCudaGraphManager`, through which Model
Runner V2 builds its parts; and while such a worker loads its model, the attention backends.
"""

import functools
import sys
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_smart.adapter import launch
from vllm_smart.adapter.last_words import leave_last_words, say_what_failed
from vllm_smart.seams.host import check_vllm_version, is_cpu, runs_on_triton
from vllm_smart.seams.seam import Where, check_seams
from vllm_smart.seams.table import seams_of_this_version

_INSTALLED = "_vllm_smart_installed"


def install() -> None:
    """Idempotent; cheap where the speculative config does not name us."""
    if is_cpu():
        from vllm_smart.mrv2_cpu import enable_cpu_host

        enable_cpu_host(launch.has_trees)
    leave_last_words()
    if any(launch.PROPOSER in argument for argument in sys.argv):
        say_what_failed()  # also of what comes before a configuration: the port
    if getattr(EngineArgs.create_engine_config, _INSTALLED, False):
        return
    EngineArgs.create_engine_config = _with_trees(EngineArgs.create_engine_config)


def _with_trees(create_engine_config: Any) -> Any:
    @functools.wraps(create_engine_config)
    def wrapper(self: EngineArgs, *args: Any, **kwargs: Any) -> VllmConfig:
        is_ours = launch.names_smart(self)
        if is_ours:
            say_what_failed()
            check_vllm_version()
            check_seams(seams_of_this_version(), {Where.FRONT_END})
            launch.rewrite_engine_args(self)
        try:
            vllm_config = create_engine_config(self, *args, **kwargs)
        except ValueError:
            if is_ours:
                launch.check_lora_room(self)
                launch.check_vocabulary(self)
            raise
        config = launch.smart_config(vllm_config)
        if config is not None:
            from vllm_smart.refusals.limits import check_limits

            check_limits(vllm_config, config)
            if config.ngrams is not None:
                from vllm_smart.adapter.ngrams import open_datastore

                open_datastore(config.ngrams, vllm_config.model_config)  # before weights are loaded
            check_requests_at_admission()
            if config.metrics:
                from vllm_smart.adapter.metrics import serve_metrics

                serve_metrics(vllm_config)
        return vllm_config

    setattr(wrapper, _INSTALLED, True)
    return wrapper


def check_requests_at_admission() -> None:
    """Refuse, in the front end, requests that would end an engine with trees. Idempotent."""
    from vllm.v1.engine.input_processor import InputProcessor

    from vllm_smart.refusals.admission import check_request, name_tenant

    process_inputs = InputProcessor.process_inputs
    if getattr(process_inputs, _INSTALLED, False):
        return

    @functools.wraps(process_inputs)
    def checked(self: InputProcessor, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        if launch.has_trees(self.vllm_config):
            check_request(request, self.vllm_config)
            name_tenant(request)
        return request

    setattr(checked, _INSTALLED, True)
    InputProcessor.process_inputs = checked


def install_in_worker() -> None:
    """Make Model Runner V2 build our speculator and model state for the engines that have trees."""
    if is_cpu():
        from vllm_smart.mrv2_cpu import provide_v2_kernels

        provide_v2_kernels()
    from vllm.v1.worker.gpu import model_runner, model_states

    if getattr(model_runner.init_speculator, _INSTALLED, False):
        return
    check_seams(seams_of_this_version(), _of_this_worker())
    from vllm_smart.adapter.drafter.methods import make_speculator
    from vllm_smart.adapter.model_state import TreeModelState

    stock_speculator = model_runner.init_speculator
    stock_state_cls = model_states.resolve_model_state_cls

    def init_speculator(vllm_config: VllmConfig, device: Any, req_states: Any) -> Any:
        config = launch.smart_config(vllm_config)
        if config is None:
            return stock_speculator(vllm_config, device, req_states)
        return make_speculator(vllm_config, config, device, req_states)

    def resolve_model_state_cls(vllm_config: VllmConfig, model: Any) -> Any:
        stock = stock_state_cls(vllm_config, model)
        if launch.smart_config(vllm_config) is None:
            return stock
        return TreeModelState.replacing(stock)

    if runs_on_triton():
        from vllm_smart.adapter.cuda.graphs import TreeGraphManager

        stock_graphs = model_runner.ModelCudaGraphManager

        def graph_manager(vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> Any:
            has_trees = launch.smart_config(vllm_config) is not None
            return (TreeGraphManager if has_trees else stock_graphs)(vllm_config, *args, **kwargs)

        model_runner.ModelCudaGraphManager = graph_manager
    setattr(init_speculator, _INSTALLED, True)
    model_runner.init_speculator = init_speculator
    model_states.resolve_model_state_cls = resolve_model_state_cls


def _of_this_worker() -> set[Where]:
    """Where this worker runs: on CPUs, Triton's interpreter may play a GPU."""
    here = {Where.WORKER}
    if is_cpu():
        here.add(Where.CPU_WORKER)
    if runs_on_triton():
        here.add(Where.GPU_WORKER)
    return here
