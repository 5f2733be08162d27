"""What is compiled while serving is counted by name; what a cache has already is not."""

import numba
import pytest

pytestmark = pytest.mark.vllm


@pytest.fixture
def noted():
    """Names of what is compiled during the test."""
    from vllm_smart.reports.jit import CompilationWatch

    names = []
    watch = CompilationWatch(names.append)
    yield names
    watch.close()


def test_each_new_type_of_argument_is_a_compilation(noted):
    @numba.njit
    def twice(value):
        return value + value

    twice(1)
    twice(2)
    assert len(noted) == 1
    assert "twice" in noted[0]
    twice(1.5)
    assert len(noted) == 2


def test_a_torch_graph_is_counted(noted):
    import torch

    @torch.compile(backend="eager", dynamic=False)
    def double(value):
        return value * 2

    from vllm_smart.reports.jit import CompilationWatch

    names = []
    watch = CompilationWatch(names.append)  # torch's compiler is there by now
    double(torch.ones(3))
    double(torch.ones(3))
    assert sum("torch graph" in name for name in names) == 1
    double(torch.ones(4))
    assert sum("torch graph" in name for name in names) == 2
    watch.close()


def test_tritons_hook_is_handed_on(monkeypatch):
    triton = pytest.importorskip("triton")
    from vllm_smart.reports.jit import CompilationWatch

    before = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **k: before.append(k))
    names = []
    watch = CompilationWatch(names.append)
    kernel = type("Kernel", (), {"name": "grow"})
    triton.knobs.runtime.jit_post_compile_hook(fn=kernel)
    assert names == ["Triton kernel grow"]
    assert before == [{"fn": kernel}]
    watch.close()
