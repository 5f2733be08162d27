"""Every layer of a block drafter gets its own weight where several are normed at once."""

import pytest
import torch

pytestmark = pytest.mark.vllm
EPSILON = 1e-6


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight


@pytest.mark.parametrize("shape", [(3, 5, 2, 32), (3, 5, 64)])
def test_each_layer_is_normed_by_its_own_weight(shape):
    import vllm._custom_ops as ops

    from vllm_smart.mrv2_cpu.grouped_norms import norm_each_layer

    norm_each_layer()
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(size, generator=generator) for size in (shape, (3, shape[-1])))
    of_layers = weight.view(3, *[1] * (len(shape) - 2), -1)
    for given in (x, x[:1].expand(shape)):  # what is the same for all layers is handed on as a view
        out = torch.full(shape, torch.nan)
        ops.rms_norm(out, given, weight, EPSILON)
        torch.testing.assert_close(out, normed(given, of_layers))
    out = torch.full(shape, torch.nan)
    ops.rms_norm(out, x, weight[0], EPSILON)
    torch.testing.assert_close(out, normed(x, weight[0]))


def test_vllms_own_kernel_still_takes_the_first_for_all():
    import vllm  # noqa: F401 its operators

    x, weight = torch.randn(2, 4, 32), torch.stack((torch.ones(32), torch.zeros(32)))
    out = torch.full_like(x, torch.nan)
    torch.ops._C.rms_norm(out, x, weight, EPSILON)
    torch.testing.assert_close(out, normed(x, weight[0]))  # or else `grouped_norms` can go
