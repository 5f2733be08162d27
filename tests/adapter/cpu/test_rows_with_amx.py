"""What README says of hosts with AMX: vLLM's own linear layers round by how many rows there are."""

import pytest
import torch

ops = pytest.importorskip("vllm._custom_ops")
pytestmark = pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(), reason="this processor has no AMX"
)


def layer(name: str, dtype: torch.dtype, num_outputs: int, num_inputs: int):
    """A linear layer by the kernels of either kind."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_outputs, num_inputs, generator=generator).to(dtype)
    if name == "oneDNN":
        handler = ops.create_onednn_mm(weight.t(), 32)
        return lambda x: ops.onednn_mm(handler, x, None)
    packed = torch.ops._C.convert_weight_packed(weight)
    return lambda x: ops.weight_packed_linear_cpu(x, packed, num_outputs, None)


@pytest.mark.parametrize(
    ("name", "dtype", "num_outputs", "num_inputs", "few", "more"),
    [
        ("small weights", torch.bfloat16, 192, 512, range(1, 5), 5),
        ("oneDNN", torch.bfloat16, 768, 768, range(8, 33, 8), 33),
        ("oneDNN", torch.float32, 768, 3072, range(1, 2), 2),
    ],
)
def test_a_row_has_other_bits_beside_more_rows(name, dtype, num_outputs, num_inputs, few, more):
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    of = layer(name, dtype, num_outputs, num_inputs)
    x = torch.randn(64, num_inputs, generator=torch.Generator().manual_seed(1)).to(dtype)
    beside_many = of(x)
    beside_few = torch.cat([of(rows) for rows in x.split(few[-1])])
    assert not torch.equal(beside_few, beside_many)
    for num_rows in few:
        assert torch.equal(of(x[:num_rows].contiguous()), beside_few[:num_rows])
    for num_rows in range(more, len(x) + 1):
        assert torch.equal(of(x[:num_rows].contiguous()), beside_many[:num_rows])
