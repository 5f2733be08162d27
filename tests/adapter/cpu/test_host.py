"""Model Runner V2 on CPUs is for the engines that ask for it."""

import pytest

from vllm_smart.adapter.engine_settings import AdditionalConfig
from vllm_smart.mrv2_cpu import provide_v2_kernels
from vllm_smart.plugin import register

pytestmark = pytest.mark.vllm


@pytest.fixture(autouse=True)
def cpu_host(monkeypatch):
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("vLLM runs on another platform")
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    register()  # as vLLM does; who asks first says who is let in


def test_enabling_twice_changes_vllm_once():
    from vllm.config import VllmConfig
    from vllm.platforms import current_platform

    def changed():
        platform = vars(type(current_platform))["register_triton_kernel_overrides"]
        return platform, VllmConfig.use_v2_model_runner, VllmConfig._validate_v2_model_runner

    before = changed()
    register()
    assert changed() == before


@pytest.mark.parametrize(
    ("asked", "by_us", "without_us"), [(None, True, False), ("1", True, True), ("0", False, False)]
)
def test_v2_is_chosen_where_we_are_named_or_it_is_asked_for(monkeypatch, asked, by_us, without_us):
    from vllm.config import VllmConfig

    if asked is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", asked)
    for _ in range(2):  # one after the other in a process
        assert VllmConfig(additional_config=AdditionalConfig(smart={})).use_v2_model_runner is by_us
        assert VllmConfig().use_v2_model_runner is without_us
        assert VllmConfig(additional_config={"smart": {}}).use_v2_model_runner is without_us


def test_vllm_still_validates_what_v2_can_do(monkeypatch):
    from vllm.config import VllmConfig

    monkeypatch.setattr(
        VllmConfig, "_get_v2_model_runner_unsupported_features", lambda self: ["time travel"]
    )
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(ValueError, match="does not yet support: time travel"):
        VllmConfig(additional_config=AdditionalConfig(smart={}))


def test_kernels_are_provided_where_vllm_asks_for_them(monkeypatch):
    from vllm.platforms import current_platform

    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    current_platform.register_triton_kernel_overrides()
    current_platform.register_triton_kernel_overrides()  # as for a second engine

    from vllm.triton_utils.dispatcher import KernelOverride
    from vllm.v1.worker.gpu.sample import gumbel

    assert isinstance(gumbel._gumbel_sample_kernel, KernelOverride)


def test_launching_a_kernel_without_a_cpu_version_names_it():
    from vllm.triton_utils import triton

    provide_v2_kernels()

    def some_kernel(x_ptr, n): ...

    assert triton.jit(some_kernel) is some_kernel  # one of V1's, or of nobody's
    some_kernel.__module__ = "vllm.v1.worker.gpu.some"
    kernel = triton.jit(do_not_specialize=["n"])(some_kernel)
    with pytest.raises(NotImplementedError, match=r"some_kernel has no CPU version"):
        kernel[(1,)](None, 1)
