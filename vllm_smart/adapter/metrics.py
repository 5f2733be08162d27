"""What the trees do, on vLLM's own `/metrics`.

The worker counts into a file (`reports.stats`); the front end, in another process, reads it whenever
Prometheus asks.
"""

import atexit
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from vllm.config import VllmConfig

from vllm_smart.config import SmartConfig
from vllm_smart.reports.stats import (
    COUNTERS,
    ERROR_BUCKETS,
    MAX_DEPTH,
    NODE_BUCKETS,
    NUM_VALUES,
    StepStats,
)


def stats_path(vllm_config: VllmConfig, data_parallel_rank: int) -> Path:
    """The file that one engine counts into; all its processes derive the same name."""
    name = f"vllm_smart-{vllm_config.instance_id}-{data_parallel_rank}.stats"
    return Path(tempfile.gettempdir()) / name


def open_stats(vllm_config: VllmConfig, config: SmartConfig) -> StepStats:
    """Counters of this engine; private to the process unless it is the one that reports."""
    parallel = vllm_config.parallel_config
    if not config.metrics or parallel.rank % parallel.world_size != 0:
        return StepStats.of_process()
    return StepStats.in_file(stats_path(vllm_config, parallel.data_parallel_index))


class StepStatsCollector(Collector):
    """The front end's side: reads the counters of all engines when `/metrics` is asked for."""

    def __init__(self) -> None:
        self._paths: list[Path] = []

    def add(self, paths: list[Path]) -> None:
        """Report the engines that count into `paths` too; they are removed at exit."""
        self._paths += paths
        for path in paths:
            atexit.register(path.unlink, missing_ok=True)

    def collect(self) -> Iterator[Metric]:
        engines = [
            (str(index), np.fromfile(path, np.float64, NUM_VALUES))
            for index, path in enumerate(self._paths)
            if path.exists() and path.stat().st_size == NUM_VALUES * 8
        ]
        for index, (name, text) in enumerate(COUNTERS.items()):
            counter = CounterMetricFamily(f"vllm_smart:{name}", text, labels=["engine"])
            for engine, values in engines:
                counter.add_metric([engine], values[index])
            yield counter
        start = len(COUNTERS)
        for name, text, edges in (
            ("accepted_depth", "Accepted draft nodes per tree.", range(MAX_DEPTH)),
            ("tree_depth", "Depth of each proposed tree.", range(MAX_DEPTH)),
            ("step_draft_nodes", "Draft nodes chosen for a step.", NODE_BUCKETS),
            ("step_time_error", "|predicted / measured time of a step - 1|.", ERROR_BUCKETS),
        ):
            num_buckets = len(edges) + 1
            histogram = HistogramMetricFamily(f"vllm_smart:{name}", text, labels=["engine"])
            for engine, values in engines:
                counts = np.cumsum(values[start : start + num_buckets])
                bounds = [*map(str, map(float, edges)), "+Inf"]
                histogram.add_metric([engine], list(zip(bounds, counts, strict=True)), sum_value=None)
            start += num_buckets
            yield histogram


@functools.cache
def _collector() -> StepStatsCollector:
    """This process's collector, registered with Prometheus by the first call."""
    collector = StepStatsCollector()
    REGISTRY.register(collector)
    return collector


def serve_metrics(vllm_config: VllmConfig) -> None:
    """Report the counters of `vllm_config`'s engines on this process's `/metrics`."""
    ranks = range(vllm_config.parallel_config.data_parallel_size)
    _collector().add([stats_path(vllm_config, rank) for rank in ranks])
