"""What layers get trees on CPUs, and what is said when a host rounds otherwise."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vllm_smart.errors import UnsupportedError
from vllm_smart.kernels.cpu import stock
from vllm_smart.kernels.tree_attention.cpu import CpuTreeAttention

pytest.importorskip("vllm")
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention.attention import Attention, set_default_quant_scales
from vllm.model_executor.layers.attention.chunked_local_attention import (
    create_chunked_local_attention_backend,
)
from vllm.model_executor.layers.attention.static_sink_attention import (
    create_static_sink_attention_backend,
)
from vllm.platforms import current_platform
from vllm.v1.attention.backends.utils import create_fast_prefill_custom_backend

if not current_platform.is_cpu():
    pytest.skip("vLLM is not built for CPUs", allow_module_level=True)

from vllm.v1.attention.backends import cpu_attn

from vllm_smart.attention import cpu as attention
from vllm_smart.attention import stock_check
from vllm_smart.attention.backends import sees_trees
from vllm_smart.demo_model import demo_model_paths

MAX_MODEL_LEN = 1000
LAYER = stock_check.LayerShape(
    num_heads=4, num_kv_heads=2, head_size=64, block_size=32, dtype=torch.bfloat16
)


@pytest.fixture
def log(monkeypatch):
    """Lines by level, as the check of bits writes them."""
    lines = {"info": [], "warning": []}
    for level, written in lines.items():
        monkeypatch.setattr(
            stock_check.logger, level, lambda text, *args, to=written: to.append(text % args)
        )
    current_platform.import_kernels()
    stock_check.check_bits.cache_clear()
    yield lines
    stock_check.check_bits.cache_clear()


@pytest.mark.parametrize(
    "special",
    [
        {},
        {"softcap": 30.0},
        {"has_window": True},
        {"has_chunks": True},
        {"has_sinks": True},
        {"has_slopes": True},
        {"has_window": True, "has_sinks": True, "softcap": 5.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_host_that_gives_the_stock_kernel_s_bits_is_noted_once(log, dtype, special):
    shape = replace(LAYER, dtype=dtype, **special)
    kernel = CpuTreeAttention()
    assert [stock_check.check_bits(kernel, shape) for _ in range(3)] == [0, 0, 0]
    assert log["warning"] == []
    (line,) = log["info"]
    assert str(dtype) in line
    assert stock.BINARY.value in line


def test_a_host_that_does_not_is_warned_of(log, monkeypatch):
    monkeypatch.setattr(stock, "key_tile", lambda head_size, isa: 16)  # sums in another order
    shape = replace(LAYER, dtype=torch.float32)
    assert stock_check.check_bits(CpuTreeAttention(), shape) > 0
    assert log["info"] == []
    (line,) = log["warning"]
    assert "torch.float32, 4 heads of 64" in line
    assert "serve without speculation" in line


@pytest.mark.parametrize(
    "wrap",
    [
        lambda backend: create_fast_prefill_custom_backend("FastPrefill_", backend),
        lambda backend: create_static_sink_attention_backend(backend, 128),
    ],
    ids=["fast prefill", "static sinks"],
)
def test_layers_whose_attention_vllm_wraps_are_refused(wrap):
    builder = wrap(attention.CPUTreeAttentionBackend).get_builder_cls()
    assert issubclass(builder, attention.CPUTreeMetadataBuilder)
    with pytest.raises(UnsupportedError, match=r"wraps \(.* of model.layers.0.attn\)"):
        builder(None, ["model.layers.0.attn"], None, None)


def test_of_backends_that_wrap_ours_those_for_chunks_have_trees():
    ours = attention.CPUTreeAttentionBackend
    assert sees_trees(ours)
    assert sees_trees(create_chunked_local_attention_backend(ours, 64))
    for other in (
        cpu_attn.CPUAttentionBackend,
        create_chunked_local_attention_backend(cpu_attn.CPUAttentionBackend, 64),
        create_fast_prefill_custom_backend("FastPrefill_", ours),
        create_static_sink_attention_backend(ours, 128),
    ):
        assert not sees_trees(other)


def layer(monkeypatch, **settings) -> attention.CPUTreeAttentionImpl:
    model = SimpleNamespace(dtype=torch.float32, max_model_len=MAX_MODEL_LEN)
    config = SimpleNamespace(model_config=model)
    for module in (attention, cpu_attn):
        monkeypatch.setattr(module, "get_current_vllm_config", lambda: config)
    defaults = {"head_size": 64, "alibi_slopes": None, "sliding_window": None}
    return attention.CPUTreeAttentionImpl(
        num_heads=4, scale=0.1, num_kv_heads=2, kv_cache_dtype="auto", **defaults | settings
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_size": 72}, r"head size \(72\)"),
        ({"head_size": 576}, r"head size \(576\)"),
    ],
)
def test_a_layer_that_no_tree_can_pass_is_refused_with_a_way_out(monkeypatch, settings, message):
    with pytest.raises(UnsupportedError, match=message) as refusal:
        layer(monkeypatch, **settings)
    assert "without speculation" in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "special"),
    [
        ({"sliding_window": MAX_MODEL_LEN}, {}),  # which no sequence outgrows
        ({"sliding_window": MAX_MODEL_LEN - 1}, {"has_window": True}),
        ({"alibi_slopes": [0.5] * 4}, {"has_slopes": True}),
        ({"sinks": torch.zeros(4)}, {"has_sinks": True}),
        ({"logits_soft_cap": 30.0}, {"softcap": 30.0}),
        ({"head_size": 80}, {}),
        ({"head_size": 512}, {}),
    ],
    ids=str,
)
def test_what_is_special_about_a_layer_is_looked_at_when_bits_are_compared(
    monkeypatch, settings, special
):
    shape = layer(monkeypatch, **settings).shaped(LAYER, SimpleNamespace())
    assert shape == replace(LAYER, **special)


def test_so_are_chunks(monkeypatch):
    shape = layer(monkeypatch).shaped(LAYER, SimpleNamespace(attention_chunk_size=64))
    assert shape == replace(LAYER, has_chunks=True)


@pytest.fixture
def vllm_config():
    """Of an engine without us."""
    model = str(demo_model_paths()["target"])
    return EngineArgs(model=model, max_model_len=256, dtype="float32").create_engine_config()


@pytest.mark.parametrize("shares", [False, True])
def test_layers_write_the_cache_that_vllm_would_write(vllm_config, shares):
    """Called as models call them; a layer that shares another one's cache writes nothing."""
    current_platform.import_kernels()
    empty, slots = torch.zeros(3, 2, 32, 2 * 64), torch.tensor([3, 70, 71, 0])
    query, key, value = torch.randn(4, 8 * 64).split([4 * 64, 2 * 64, 2 * 64], dim=-1)
    written = []
    for backend in (cpu_attn.CPUAttentionBackend, attention.CPUTreeAttentionBackend):
        with set_current_vllm_config(vllm_config):
            of = Attention(4, 64, 0.125, num_kv_heads=2, prefix=backend.__name__, attn_backend=backend)
        set_default_quant_scales(of, register_buffer=False)
        of.isa, of.kv_cache = "vec", empty.clone()
        of.kv_sharing_target_layer_name = "another" if shares else None
        mapping = {of.layer_name: slots}
        with set_forward_context({of.layer_name: None}, vllm_config, slot_mapping=mapping):
            of(query, key, value)
        written.append(of.kv_cache)
    assert torch.equal(*written)
    assert torch.equal(written[0], empty) is shares
