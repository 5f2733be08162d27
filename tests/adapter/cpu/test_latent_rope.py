"""Heads of latent attention turn by the position of their token, as in PyTorch."""

import pytest

pytestmark = pytest.mark.vllm
NUM_TOKENS, NUM_HEADS, SIZE, NOPE = 5, 4, 64, 32


@pytest.fixture(scope="module")
def layer():
    import torch
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    with set_current_vllm_config(VllmConfig()):
        return RotaryEmbedding(SIZE, SIZE, 128, 10000.0, False, torch.float32)


def rows(num_heads: int):
    """Heads that lie apart, as of a query whose other part has no position."""
    import torch

    whole = torch.randn(NUM_TOKENS, num_heads, NOPE + SIZE, generator=torch.Generator().manual_seed(0))
    return whole, whole[..., NOPE:]


def positions():
    import torch

    return torch.tensor([7, 3, 90, 4, 50])


def test_all_heads_of_a_token_turn_by_its_position(layer):
    import torch

    from vllm_smart.mrv2_cpu.latent_rope import rotate_whole_tokens

    rotate_whole_tokens()
    whole, query = rows(NUM_HEADS)
    key = rows(1)[1]
    expected = layer.forward_native(positions(), query.clone(), key.clone())
    untouched = whole[..., :NOPE].clone()
    layer.forward_cpu(positions(), query, key)
    for turned, of_pytorch in zip((query, key), expected, strict=True):
        torch.testing.assert_close(turned, of_pytorch)
    assert torch.equal(whole[..., :NOPE], untouched)


def test_heads_side_by_side_turn_as_before(layer):
    import torch

    query = rows(NUM_HEADS)[1].flatten(1)
    key = rows(1)[1].flatten(1)
    expected = layer.forward_native(positions(), query.clone(), key.clone())
    layer.forward_cpu(positions(), query, key)
    for turned, of_pytorch in zip((query, key), expected, strict=True):
        torch.testing.assert_close(turned, of_pytorch)


def test_vllms_kernel_takes_heads_for_tokens(layer):
    import inspect

    import torch
    from vllm import _custom_ops as ops

    from vllm_smart.mrv2_cpu.latent_rope import rotate_whole_tokens

    rotate_whole_tokens()
    query = rows(NUM_HEADS)[1].contiguous()
    expected, _ = layer.forward_native(positions(), query.clone(), rows(1)[1])
    # As many positions and keys as it reads.
    read, key = positions().repeat(NUM_HEADS), torch.zeros(NUM_HEADS * NUM_TOKENS, 1, SIZE)
    turned = query.clone()
    stock = inspect.unwrap(ops.rotary_embedding)
    stock(read, turned, key, SIZE, layer.cos_sin_cache, False)
    assert not torch.allclose(turned, expected)  # or else `latent_rope` can go
