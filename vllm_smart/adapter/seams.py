"""Every place where vLLM is changed rather than configured.

In all processes: `EngineArgs.create_engine_config` (rewrites our speculative config; checked by
contract tests). Removed when vLLM lets a plugin register a speculative method.

In worker processes, by `install_in_worker` and only where trees are in use: the names
`init_speculator`, `resolve_model_state_cls` and, on GPUs, `ModelCudaGraphManager`, through which Model
Runner V2 builds its parts.
Supported versions are in `host.SUPPORTED`.
"""

import functools
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_smart.adapter import launch
from vllm_smart.adapter.host import is_cpu, runs_on_triton

_INSTALLED = "_vllm_smart_installed"


def install() -> None:
    """Idempotent; cheap where the speculative config does not name us."""
    if is_cpu():
        from vllm_smart.adapter.cpu import enable_cpu_host

        enable_cpu_host()
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
            if config.metrics:
                from vllm_smart.adapter.metrics import serve_metrics

                serve_metrics(vllm_config)
        return vllm_config

    setattr(wrapper, _INSTALLED, True)
    return wrapper


def install_in_worker(vllm_config: VllmConfig) -> None:
    """Make Model Runner V2 build our speculator, model state and attention backend."""
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
    register_attention_backends()


def register_attention_backends() -> None:
    """Put ours in the place of the attention backends that they extend."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    backends = {AttentionBackendEnum.CPU_ATTN: "cpu.attention.CPUTreeAttentionBackend"}
    if runs_on_triton():
        backends = {
            AttentionBackendEnum.FLASH_ATTN: "cuda.attention.FlashTreeAttentionBackend",
            AttentionBackendEnum.TRITON_ATTN: "cuda.attention.TritonTreeAttentionBackend",
        }
    if runs_on_triton() and is_cpu():
        # vLLM's CPU platform knows no other backend's name.
        triton_backend = backends[AttentionBackendEnum.TRITON_ATTN]
        backends = {AttentionBackendEnum.CPU_ATTN: triton_backend}
    for backend, ours in backends.items():
        register_backend(backend, f"vllm_smart.adapter.{ours}")
