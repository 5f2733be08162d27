from functools import partial

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vllm_smart.reports.exporter import MetricTypes
from vllm_smart.reports.shared import SharedCounters, new_prefix


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return SharedCounters.create(new_prefix(), 0)


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def types(registry):
    return MetricTypes(*(partial(kind, registry=registry) for kind in (Counter, Gauge, Histogram)))
