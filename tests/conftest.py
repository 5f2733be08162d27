"""Where there is no GPU, Triton's interpreter runs our device kernels on the CPU.

It must be chosen before anything imports Triton, and then holds for the whole process - but not for
the engines that tests start as processes of their own, which find no trace of it in the environment.
"""

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# Files that take minutes, the longest first: what is short fills the gaps between workers at the end.
# Who asks for an engine that another worker runs waits for it. So `test_lossless` begins, which runs
# most of those that are shared, and files that need hardly any others come last.
LONG = (
    *("e2e/test_lossless", "e2e/test_cuda_path", "e2e/test_tensor_parallel", "e2e/test_chain_heads"),
    *("adapter/cpu/test_v2_on_cpu", "unit/bench/test_bench_end_to_end", "e2e/test_serve"),
    *("e2e/test_inputs", "e2e/test_windows", "e2e/test_chains", "e2e/test_first_requests"),
    *("e2e/test_saved_models", "e2e/test_overlap", "adapter/cpu/test_harmless", "e2e/test_fuzz"),
    *("e2e/test_block_drafters", "e2e/test_distribution", "e2e/test_data_parallel", "e2e/test_async"),
    *("e2e/test_drafting", "e2e/test_parsers", "e2e/test_mtp", "e2e/test_live", "e2e/test_grammars"),
)

if not torch.cuda.is_available() and find_spec("triton") is not None:
    os.environ["TRITON_INTERPRET"] = "1"  # for Triton's own functions, made by the import
    import triton

    triton.knobs.runtime.interpret = True  # for ours
    del os.environ["TRITON_INTERPRET"]
    from tests.quick_interpreter import replace_once

    replace_once()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; `--no-loadscope-reorder` has xdist keep to it."""
    place = {Path(__file__).parent / f"{name}.py": at for at, name in enumerate(LONG)}
    assert all(path.exists() for path in place), "LONG names a file that is not there"
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """An engine's counters, as its worker makes them."""
    from vllm_smart.reports.shared import SharedCounters, new_prefix

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return SharedCounters.create(new_prefix(), 0)


@pytest.fixture
def registry():
    """A registry of Prometheus that has nothing yet."""
    from prometheus_client import CollectorRegistry

    return CollectorRegistry()


@pytest.fixture
def types(registry):
    """What makes metrics in `registry`."""
    from prometheus_client import Counter, Gauge, Histogram

    from vllm_smart.reports.exporter import MetricTypes

    return MetricTypes(*(partial(kind, registry=registry) for kind in (Counter, Gauge, Histogram)))
