"""RMS norms of several layers at once, by a weight for each: what block drafters do to their context.

vLLM's kernel for GPUs takes the weight of each layer. The one for CPUs takes that of the first for all,
which leaves a drafter's other layers with keys that they were not trained for, and says nothing.
"""

import functools

import torch


@functools.cache
def norm_each_layer() -> None:
    """Give every layer its own weight in this process. Idempotent."""
    from vllm import _custom_ops as ops

    rms_norm = ops.rms_norm

    @functools.wraps(rms_norm)
    def by_layer(
        out: torch.Tensor, input: torch.Tensor, weight: torch.Tensor | None, epsilon: float
    ) -> None:
        if weight is None or weight.dim() == 1:
            rms_norm(out, input, weight, epsilon)
            return
        for layer, of_layer in enumerate(weight):
            rms_norm(out[layer], input[layer].contiguous(), of_layer, epsilon)

    ops.rms_norm = by_layer
