"""What the trees do, on vLLM's own `/metrics`.

The worker counts into a small file mapped into memory; the front end, in another process, reads
it whenever Prometheus asks. Writing costs a few array additions per step.
"""

import atexit
import functools
import mmap
import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from vllm.config import VllmConfig

from vllm_smart.config import SmartConfig
from vllm_smart.tree import TreeBatch

MAX_DEPTH = 16  # deeper walks count as this deep
ERROR_BUCKETS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)  # relative
NODE_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)  # draft nodes of a whole step

_COUNTERS = {
    "steps": "Target steps that ended with a decision about the next one.",
    "steps_without_speculation": "Decisions to verify no draft node in the next step.",
    "steps_without_drafting": "Steps in which the drafter did not run at all.",
    "rows_read": "Tokens that the drafter has read.",
    "draft_levels": "Levels drafted, the first of which comes with reading.",
    "unused_draft_levels": "Levels drafted of which no node was verified.",
    "chosen_nodes": "Draft nodes chosen; of requests that end, or are trimmed, not all are verified.",
    "draft_nodes": "Draft nodes verified.",
    "trees": "Trees verified.",
    "accepted_nodes": "Draft nodes accepted.",
    "expected_tokens": "Tokens expected of the trees verified, bonus tokens included.",
    "emitted_tokens": "Tokens that came of them.",
    "predicted_steps": "Steps whose time had been predicted.",
    "predicted_ms": "Sum of predicted step times, milliseconds.",
    "measured_ms": "Sum of the same steps' measured times, milliseconds.",
    "jit_compilations": "Functions compiled while serving; requests waited for each.",
}
_PLACE = {name: place for place, name in enumerate(_COUNTERS)}
_NUM_COUNTERS = len(_COUNTERS)
_NUM_DEPTHS = MAX_DEPTH + 1
_NUM_BUDGETS, _NUM_ERRORS = len(NODE_BUCKETS) + 1, len(ERROR_BUCKETS) + 1
NUM_VALUES = _NUM_COUNTERS + 2 * _NUM_DEPTHS + _NUM_BUDGETS + _NUM_ERRORS


def stats_path(vllm_config: VllmConfig, data_parallel_rank: int) -> Path:
    """The file that one engine counts into; all its processes derive the same name."""
    name = f"vllm_smart-{vllm_config.instance_id}-{data_parallel_rank}.stats"
    return Path(tempfile.gettempdir()) / name


class StepStats:
    """The worker's side: counts into `values` [NUM_VALUES] float64, shared with the front end."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self._counter = memoryview(values)[:_NUM_COUNTERS]  # cheaper by the number than an array
        rest = values[_NUM_COUNTERS:]
        self._accepted_depth = rest[:_NUM_DEPTHS]
        self._drafted_depth = rest[_NUM_DEPTHS : 2 * _NUM_DEPTHS]
        self._budget = rest[2 * _NUM_DEPTHS :][:_NUM_BUDGETS]
        self._error = rest[2 * _NUM_DEPTHS + _NUM_BUDGETS :]

    @classmethod
    def open(cls, vllm_config: VllmConfig, config: SmartConfig) -> "StepStats":
        """Counters of this engine; private to the process unless it is the one that reports."""
        parallel = vllm_config.parallel_config
        if not config.metrics or parallel.rank % parallel.world_size != 0:
            return cls(np.zeros(NUM_VALUES))
        path = stats_path(vllm_config, parallel.data_parallel_index)
        with open(path, "w+b") as file:
            file.truncate(NUM_VALUES * 8)
            shared = mmap.mmap(file.fileno(), NUM_VALUES * 8)
        return cls(np.frombuffer(shared, np.float64))

    def reset(self) -> None:
        """Count from 0 again."""
        self._values[:] = 0

    def counters(self) -> dict[str, float | list[float]]:
        """Everything counted so far: sums by name, histograms as counts by bucket."""
        return {
            **dict(zip(_COUNTERS, self._counter, strict=True)),
            "accepted_depth": self._accepted_depth.tolist(),
            "tree_depth": self._drafted_depth.tolist(),
            "step_draft_nodes": self._budget.tolist(),
            "step_time_error": self._error.tolist(),
        }

    def _add(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._counter[_PLACE[name]] += amount

    def record_walk(self, num_accepted: np.ndarray, num_drafts: int, expected: float) -> None:
        """A step's trees were verified.

        Args:
            num_accepted: [num_trees] accepted draft nodes of each.
            num_drafts: draft nodes of all trees together.
            expected: how many of them were expected to be accepted.
        """
        num_trees, accepted = len(num_accepted), int(num_accepted.sum())
        self._add(
            trees=num_trees,
            draft_nodes=num_drafts,
            accepted_nodes=accepted,
            expected_tokens=num_trees + expected,
            emitted_tokens=num_trees + accepted,
        )
        np.add.at(self._accepted_depth, np.minimum(num_accepted, MAX_DEPTH), 1)

    def record_rest(self) -> None:
        """The drafter did not run in a step."""
        self._add(steps=1, steps_without_drafting=1, steps_without_speculation=1)
        self._budget[0] += 1

    def record_trees(self, trees: TreeBatch, num_read: int, num_levels: int) -> None:
        """A step's drafting: the trees chosen, the rows read for them, the levels drafted."""
        num_chosen = int((trees.num_nodes - 1).sum())
        deepest = trees.depth.max(axis=1, where=trees.is_node(), initial=0)
        self._add(
            steps=1,
            steps_without_speculation=num_chosen == 0,
            rows_read=num_read,
            draft_levels=num_levels,
            unused_draft_levels=num_levels - int(deepest.max(initial=0)),
            chosen_nodes=num_chosen,
        )
        self._budget[np.searchsorted(NODE_BUCKETS, num_chosen)] += 1
        np.add.at(self._drafted_depth, np.minimum(deepest[trees.num_nodes > 1], MAX_DEPTH), 1)

    def record_time(self, predicted_ms: float, measured_ms: float) -> None:
        """How the prediction of a step's time came out."""
        self._add(predicted_steps=1, predicted_ms=predicted_ms, measured_ms=measured_ms)
        error = abs(predicted_ms / measured_ms - 1.0)
        self._error[bisect_left(ERROR_BUCKETS, error)] += 1

    def record_compilation(self) -> None:
        """Something was compiled while serving."""
        self._add(jit_compilations=1)


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
        for index, (name, text) in enumerate(_COUNTERS.items()):
            counter = CounterMetricFamily(f"vllm_smart:{name}", text, labels=["engine"])
            for engine, values in engines:
                counter.add_metric([engine], values[index])
            yield counter
        start = _NUM_COUNTERS
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
