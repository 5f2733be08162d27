"""Asynchronous scheduling without a GPU: vLLM has both halves of it, but keeps CPUs from using them."""

from typing import Any


def schedule_ahead() -> None:
    """Let this process schedule a step while the one before has not been looked at."""
    from vllm.platforms.cpu import CpuPlatform

    from vllm_smart.entry import launch

    stock = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        is_async = vllm_config.scheduler_config.async_scheduling
        stock(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = is_async

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    launch.is_cpu = lambda: False
