"""Attention backends: ours with trees, and those of vLLM that do for chains."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_smart.seams.host import is_cpu, runs_on_triton

_CHUNKED = "ChunkedLocalAttention"


def tree_backends() -> dict[Any, str]:
    """Which of vLLM's attention backends has trees, by the name of our class that extends it."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum as Backend

    if not runs_on_triton():
        backends = {Backend.CPU_ATTN: "cpu.CPUTreeAttentionBackend"}
    elif is_cpu():
        # vLLM's CPU platform knows no other backend's name.
        backends = {Backend.CPU_ATTN: "gpu.TritonTreeAttentionBackend"}
    else:
        backends = {
            Backend.FLASH_ATTN: "gpu.FlashTreeAttentionBackend",
            Backend.TRITON_ATTN: "gpu.TritonTreeAttentionBackend",
        }
    return {backend: f"vllm_smart.attention.{ours}" for backend, ours in backends.items()}


def does_for_chains(backend: type) -> bool:
    """Whether chains have been proven with one of vLLM's own attention backends: on CPUs alone."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionBackend
    from vllm.v1.attention.backends.mamba2_attn import Mamba2AttentionBackend
    from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

    proven = CPUAttentionBackend, CPUMLABackend, GDNAttentionBackend, Mamba2AttentionBackend
    return backend in proven or (is_of_chunks(backend) and backend.__base__ is CPUAttentionBackend)


def sees_trees(backend: type) -> bool:
    """Whether a backend is ours, on CPUs with chunks, too. Others that wrap it pass it other rows."""
    ours = backend
    if is_cpu() and not runs_on_triton() and is_of_chunks(backend):
        ours = backend.__base__
    return f"{ours.__module__}.{ours.__qualname__}" in tree_backends().values()


def is_of_chunks(wrapper: type) -> bool:
    """Whether a backend, or its builder, is one that vLLM has made of another, for a size of chunks."""
    return wrapper.__name__.startswith(_CHUNKED) and len(wrapper.__bases__) == 1


@contextmanager
def attention_with_trees() -> Iterator[None]:
    """Layers that are made meanwhile take our attention backends, and none before or after it."""
    with _backends_kept() as overrides:
        overrides.update(tree_backends())
        yield


@contextmanager
def attention_without_trees() -> Iterator[None]:
    """Layers that are made meanwhile take vLLM's own, also within `attention_with_trees`."""
    with _backends_kept() as overrides:
        for backend, ours in tree_backends().items():
            if overrides.get(backend) == ours:
                del overrides[backend]
        yield


@contextmanager
def _backends_kept() -> Iterator[dict[Any, str]]:
    """What vLLM takes for its backends, as it is before and after this.

    vLLM remembers which backend it has chosen, for all engines of a process.
    """
    from vllm.v1.attention.backends import registry
    from vllm.v1.attention.selector import _cached_get_attn_backend

    before = dict(registry._ATTN_OVERRIDES)
    _cached_get_attn_backend.cache_clear()
    try:
        yield registry._ATTN_OVERRIDES
    finally:
        registry._ATTN_OVERRIDES.clear()
        registry._ATTN_OVERRIDES.update(before)
        _cached_get_attn_backend.cache_clear()
