"""Where there is no GPU, Triton's interpreter runs our device kernels on the CPU.

It must be chosen before anything imports Triton, and then holds for the whole process - but not for
the engines that tests start as processes of their own, which find no trace of it in the environment.
"""

import os
from functools import partial
from importlib.util import find_spec

import pytest
import torch

if not torch.cuda.is_available() and find_spec("triton") is not None:
    os.environ["TRITON_INTERPRET"] = "1"  # for Triton's own functions, made by the import
    import triton

    triton.knobs.runtime.interpret = True  # for ours
    del os.environ["TRITON_INTERPRET"]


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
