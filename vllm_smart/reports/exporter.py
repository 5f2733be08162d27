"""What was counted as metrics of `prometheus_client`, or of whatever is called as it is."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import Counter, Gauge, Histogram

from vllm_smart.reports.families import FAMILIES, INFO, INFO_LABELS, NUM_VALUES, Family
from vllm_smart.reports.stats import views

_ENGINE_LABELS = ("model_name", "engine")  # as vLLM's own


class MetricTypes(NamedTuple):
    """What makes metrics: `prometheus_client`'s, or classes that are called as they are."""

    counter: Any = Counter
    gauge: Any = Gauge
    histogram: Any = Histogram


class Metrics:
    """All families as metrics, registered once per process."""

    def __init__(self, types: MetricTypes) -> None:
        self._of = {family.name: _make(types, family) for family in FAMILIES}
        self.info = _make(types, INFO, INFO_LABELS)

    def children(self, family: Family, engine: tuple[str, str]) -> np.ndarray:
        """One engine's metrics by their labels, objects."""
        metric = self._of[family.name]
        found = np.empty([len(label.values) for label in family.labels], object)
        for place in np.ndindex(found.shape):
            values = (label.values[at] for label, at in zip(family.labels, place, strict=True))
            found[place] = metric.labels(*engine, *values)
        return found


def _make(types: MetricTypes, family: Family, names: tuple[str, ...] = ()) -> Any:
    names = names or tuple(label.name for label in family.labels)
    kinds = {"counter": types.counter, "gauge": types.gauge, "histogram": types.histogram}
    more: dict[str, Any] = {}
    if family.kind == "gauge":
        more["multiprocess_mode"] = "mostrecent"
    elif family.kind == "histogram":
        more["buckets"] = list(family.edges)
    return kinds[family.kind](
        name=f"vllm_smart:{family.name}",
        documentation=family.text,
        labelnames=[*_ENGINE_LABELS, *names],
        **more,
    )


@functools.cache
def metrics_of(types: MetricTypes) -> Metrics:
    """This process's; a second engine in it shares them."""
    return Metrics(types)


class EngineSeries:
    """One engine's part of the metrics."""

    def __init__(self, metrics: Metrics, model_name: str, rank: int) -> None:
        self._engine = model_name, str(rank)
        self._info = metrics.info
        self._children = {family.name: metrics.children(family, self._engine) for family in FAMILIES}
        self._seen = views(np.zeros(NUM_VALUES))
        self._about: Mapping[str, str] | None = None

    def update(self, counted: np.ndarray, about: Mapping[str, str] | None) -> None:
        """Add what was counted since the last time.

        Args:
            counted: [NUM_VALUES] so far; copied, as its engine may go on.
            about: what it speculates by, None if that is not known yet.
        """
        now = views(counted.copy())
        for family in FAMILIES:
            children, values = self._children[family.name], now[family.name]
            seen = self._seen[family.name]
            for place in np.ndindex(children.shape):
                child: Any = children[place]
                if family.kind == "gauge":
                    child.set(float(values[place]))
                elif family.kind == "counter" and values[place] > seen[place]:
                    child.inc(float(values[place] - seen[place]))
                elif family.kind == "histogram":
                    _observe(child, family.edges, values[place], seen[place])
        self._seen = now
        self._show(about)

    def _show(self, about: Mapping[str, str] | None) -> None:
        if about is None or about == self._about:
            return
        for shown, value in ((self._about, 0), (about, 1)):
            if shown is not None:
                self._info.labels(*self._engine, *(shown[name] for name in INFO_LABELS)).set(value)
        self._about = about


def _observe(histogram: Any, edges: tuple[float, ...], values: np.ndarray, seen: np.ndarray) -> None:
    """Observe as many values as were counted, each bucket's at their mean, so that the sum is right.

    Args:
        values: [2, buckets] counts and sums. Sums are written first, so that one may be ahead of its
            count: it is set back here, and comes with the next look.
        seen: the same when they were looked at last.
    """
    counts = values[0] - seen[0]
    values[1] = np.where(counts > 0, values[1], seen[1])
    for bucket in np.flatnonzero(counts > 0).tolist():
        value = (values[1, bucket] - seen[1, bucket]) / counts[bucket]
        if bucket < len(edges):
            value = min(value, edges[bucket])  # not rounded beyond its bucket
        for _ in range(round(counts[bucket])):
            histogram.observe(float(value))
