import pytest

from vllm_smart.adapter.cpu import enable_cpu_host

pytestmark = pytest.mark.vllm


@pytest.fixture(autouse=True)
def cpu_host():
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("vLLM runs on another platform")
    enable_cpu_host()


def test_enabling_twice_registers_once():
    from vllm.platforms import current_platform

    before = type(current_platform).__dict__["register_triton_kernel_overrides"]
    enable_cpu_host()
    assert type(current_platform).__dict__["register_triton_kernel_overrides"] is before


def test_v2_is_chosen_unless_refused(monkeypatch):
    from vllm.config import VllmConfig

    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    assert VllmConfig().use_v2_model_runner
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert not VllmConfig().use_v2_model_runner


def test_kernels_are_registered_where_vllm_asks_for_them():
    from vllm.platforms import current_platform

    current_platform.register_triton_kernel_overrides()
    current_platform.register_triton_kernel_overrides()  # as for a second engine

    from vllm.triton_utils.dispatcher import KernelOverride
    from vllm.v1.worker.gpu.sample import gumbel

    assert isinstance(gumbel._gumbel_sample_kernel, KernelOverride)


def test_launching_a_kernel_without_a_cpu_version_names_it():
    from vllm.triton_utils import triton

    @triton.jit(do_not_specialize=["n"])
    def some_kernel(x_ptr, n): ...

    with pytest.raises(NotImplementedError, match=r"some_kernel has no CPU version"):
        some_kernel[(1,)](None, 1)
