"""Growing trees in Triton."""

from vllm_smart.kernels.grow.gpu.begin import begin_growth, settle
from vllm_smart.kernels.grow.gpu.children import add_children
from vllm_smart.kernels.grow.gpu.expand import expand_level

__all__ = ["add_children", "begin_growth", "expand_level", "settle"]
