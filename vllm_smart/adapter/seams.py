"""Every place where vLLM is changed rather than configured; nothing changes for engines without us.

In all processes: `EngineArgs.create_engine_config` (rewrites our speculative config; checked by
contract tests). Removed when vLLM lets a plugin register a speculative method. On CPUs also the gates
of Model Runner V2, see `cpu.host`.

In a front end whose engine has trees: `InputProcessor.process_inputs` (refuses requests that the
runner could not serve). It, and all the rest, looks at the configuration of each engine.

In worker processes, by `install_in_worker` and only where trees are in use: the names
`init_speculator`, `resolve_model_state_cls` and, on GPUs, `ModelCudaGraphManager`, through which Model
Runner V2 builds its parts; and while such a worker loads its model, the attention backends.
Supported versions are in `host.SUPPORTED`.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_smart.adapter import launch
from vllm_smart.adapter.host import is_cpu, runs_on_triton

_INSTALLED = "_vllm_smart_installed"


def install() -> None:
    """Idempotent; cheap where the speculative config does not name us."""
    if is_cpu():
        from vllm_smart.mrv2_cpu import enable_cpu_host

        enable_cpu_host(launch.has_trees)
    if getattr(EngineArgs.create_engine_config, _INSTALLED, False):
        return
    EngineArgs.create_engine_config = _with_trees(EngineArgs.create_engine_config)


def _with_trees(create_engine_config: Any) -> Any:
    @functools.wraps(create_engine_config)
    def wrapper(self: EngineArgs, *args: Any, **kwargs: Any) -> VllmConfig:
        if launch.names_smart(self):
            launch.rewrite_engine_args(self)
        vllm_config = create_engine_config(self, *args, **kwargs)
        config = launch.smart_config(vllm_config)
        if config is not None:
            from vllm_smart.adapter.limits import check_limits

            check_limits(vllm_config, config)
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

    from vllm_smart.adapter.admission import check_request

    process_inputs = InputProcessor.process_inputs
    if getattr(process_inputs, _INSTALLED, False):
        return

    @functools.wraps(process_inputs)
    def checked(self: InputProcessor, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        if launch.has_trees(self.vllm_config):
            check_request(request, self.vllm_config)
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
    from vllm_smart.adapter.drafter.speculator import make_speculator
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


def tree_backends() -> dict[Any, str]:
    """Which of vLLM's attention backends has trees, by the name of our class that extends it."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum as Backend

    if not runs_on_triton():
        backends = {Backend.CPU_ATTN: "cpu.attention.CPUTreeAttentionBackend"}
    elif is_cpu():
        # vLLM's CPU platform knows no other backend's name.
        backends = {Backend.CPU_ATTN: "cuda.attention.TritonTreeAttentionBackend"}
    else:
        backends = {
            Backend.FLASH_ATTN: "cuda.attention.FlashTreeAttentionBackend",
            Backend.TRITON_ATTN: "cuda.attention.TritonTreeAttentionBackend",
        }
    return {backend: f"vllm_smart.adapter.{ours}" for backend, ours in backends.items()}


@contextmanager
def attention_with_trees() -> Iterator[None]:
    """Layers that are made meanwhile take our attention backends, and none before or after it.

    vLLM remembers which backend it has chosen, for all engines of a process.
    """
    from vllm.v1.attention.backends import registry
    from vllm.v1.attention.selector import _cached_get_attn_backend

    before = dict(registry._ATTN_OVERRIDES)
    for backend, ours in tree_backends().items():
        registry.register_backend(backend, ours)
    _cached_get_attn_backend.cache_clear()
    try:
        yield
    finally:
        registry._ATTN_OVERRIDES.clear()
        registry._ATTN_OVERRIDES.update(before)
        _cached_get_attn_backend.cache_clear()
