"""Runs vLLM's Model Runner V2 on a CPU, where its Triton kernels cannot compile."""

from vllm_smart.adapter.cpu.host import enable_cpu_host, provide_v2_kernels

__all__ = ["enable_cpu_host", "provide_v2_kernels"]
