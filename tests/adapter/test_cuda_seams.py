"""Contract with the parts of vLLM for GPUs that we extend; none of this needs a GPU."""

import dataclasses
import inspect
import re
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.vllm


@pytest.fixture
def cuda_attention():
    pytest.importorskip("triton")
    from vllm_smart.attention import gpu

    return gpu


def pairs(attention):
    return [
        (attention.FlashTreeAttentionBackend, attention.FlashAttentionBackend),
        (attention.TritonTreeAttentionBackend, attention.TritonAttentionBackend),
    ]


def test_trees_come_before_vllms_own_parts(cuda_attention):
    for ours, stock in pairs(cuda_attention):
        assert ours.get_name() == stock.get_name()
        for part, trees in (
            ("get_impl_cls", cuda_attention.TreeImpl),
            ("get_builder_cls", cuda_attention.TreeBuilder),
        ):
            order = getattr(ours, part)().__mro__
            assert order.index(trees) < order.index(getattr(stock, part)())


def test_the_warm_up_of_gpus_finds_what_it_asks_of_a_rejection_sampler():
    from vllm.v1.worker.gpu import warmup

    from vllm_smart.adapter.verifier import TreeVerifier

    source = inspect.getsource(warmup.warmup_kernels)
    assert set(re.findall(r"rejection_sampler\.(\w+)", source)) == {"enable_adaptive_verification"}
    assert TreeVerifier.enable_adaptive_verification is False


def test_full_graphs_are_promised_for_decoding_alone(cuda_attention):
    from vllm.v1.attention.backend import AttentionCGSupport

    for ours, _ in pairs(cuda_attention):
        support = ours.get_builder_cls().get_cudagraph_support(None, None)
        assert support == AttentionCGSupport.UNIFORM_BATCH


def test_caches_are_written_before_attention_and_apart_from_it(cuda_attention):
    """A step's metadata may be ours: nothing but `forward` reads it."""
    for _, stock in pairs(cuda_attention):
        assert stock.forward_includes_kv_cache_update is False


def test_metadata_is_cut_at_the_first_request_without_a_tree(cuda_attention):
    from vllm.v1.attention.backends.flash_attn import FlashAttentionMetadata
    from vllm.v1.attention.backends.triton_attn import TritonAttentionMetadata

    for kind in (FlashAttentionMetadata, TritonAttentionMetadata):
        fields = {field.name: None for field in dataclasses.fields(kind)}
        whole = kind(
            **{
                **fields,
                "num_actual_tokens": 11,
                "query_start_loc": torch.tensor([0, 3, 5, 11]),
                "seq_lens": torch.tensor([30, 20, 10]),
                "block_table": torch.arange(6).view(3, 2),
                "slot_mapping": torch.arange(11),
                "scheduler_metadata": torch.ones(4),
            }
        )
        rest = cuda_attention._without_first(whole, num_reqs=2, num_rows=5)
        assert rest.num_actual_tokens == 6
        assert rest.query_start_loc.tolist() == [0, 6]
        assert rest.seq_lens.tolist() == [10]
        assert rest.block_table.tolist() == [[4, 5]]
        assert rest.slot_mapping.tolist() == list(range(5, 11))
        assert rest.scheduler_metadata is None


@pytest.fixture
def check(monkeypatch):
    """Function that lets the last defence of a worker on a GPU look at one layer."""
    from vllm_smart.attention import backends
    from vllm_smart.refusals import built_attention
    from vllm_smart.refusals.built_attention import check_attention

    monkeypatch.setattr(backends, "is_cpu", lambda: False)
    for module in (backends, built_attention):
        monkeypatch.setattr(module, "runs_on_triton", lambda: True)

    def check(backend: type, window: int | None = None, **impl: object) -> None:
        layer = SimpleNamespace(impl=SimpleNamespace(**impl), sliding_window=window)
        config = SimpleNamespace(
            compilation_config=SimpleNamespace(static_forward_context={"layer": layer}),
            model_config=SimpleNamespace(max_model_len=128),
        )
        check_attention(
            config, [SimpleNamespace(backend=backend, layer_names=["layer"])], has_trees=True
        )

    return check


def test_other_attention_backends_are_refused_by_name(cuda_attention, check):
    from vllm.v1.attention.backend import subclass_attention_backend

    from vllm_smart.errors import UnsupportedError

    for ours, stock in pairs(cuda_attention):
        check(ours)
        with pytest.raises(UnsupportedError, match=stock.get_name()):
            check(stock)
        # What vLLM makes of ours for chunks, sinks and shared caches.
        wrapped = subclass_attention_backend("Chunks", ours, ours.get_builder_cls())
        with pytest.raises(UnsupportedError, match="Chunks"):
            check(wrapped)


def test_layers_that_trees_do_not_fit_into_are_refused_by_name(cuda_attention, check):
    from vllm_smart.errors import UnsupportedError

    ours, _ = pairs(cuda_attention)[0]
    check(ours, window=128, alibi_slopes=None, sinks=None)
    with pytest.raises(UnsupportedError, match="sliding window"):
        check(ours, window=127)
    with pytest.raises(UnsupportedError, match="ALiBi"):
        check(ours, alibi_slopes=torch.ones(2))
    with pytest.raises(UnsupportedError, match="sinks"):
        check(ours, sinks=torch.ones(2))


def test_a_gpu_is_refused_until_somebody_asks_to_try(monkeypatch):
    from vllm_smart.refusals import limits

    def refusals(is_cuda: bool) -> list[str]:
        platform = SimpleNamespace(device_name="cuda", is_cuda=lambda: is_cuda)
        monkeypatch.setattr(limits, "current_platform", platform)
        return [setting for setting, _ in limits._unsupported_device()]

    monkeypatch.delenv(limits.TRY_CUDA_ENV, raising=False)
    monkeypatch.setattr(limits, "is_cpu", lambda: False)
    assert "not been run or measured" in refusals(is_cuda=True)[0]
    monkeypatch.setenv(limits.TRY_CUDA_ENV, "1")
    assert refusals(is_cuda=True) == []
    assert len(refusals(is_cuda=False)) == 1
    monkeypatch.setattr(limits, "is_cpu", lambda: True)
    assert refusals(is_cuda=False) == []
