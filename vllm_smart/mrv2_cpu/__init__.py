"""vLLM's Model Runner V2 on CPUs, where its Triton kernels cannot compile; knows nothing of trees.

CPU versions of the kernels, and the gates through which engines get them. `README.md`: when it may go.
"""

from vllm_smart.mrv2_cpu.host import enable_cpu_host, provide_v2_kernels

__all__ = ["enable_cpu_host", "provide_v2_kernels"]
