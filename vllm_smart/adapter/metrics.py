"""What the trees do, on vLLM's own `/metrics`: a stat logger (`vllm.stat_logger_plugins`).

The metrics are ordinary ones of `prometheus_client`, so they are there with one API server and with
several. Where the front end is an actor of Ray, they are Ray's. The workers count (`reports.shared`); a
thread of one front end per engine looks once a second what has come since. Engines on other machines,
whose memory is not here, are asked.
"""

import sys
import threading
import time
import weakref
from collections.abc import Set
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from vllm_smart.adapter.ask_engines import Inquiry
from vllm_smart.adapter.engine_settings import counters_prefix
from vllm_smart.reports.exporter import EngineSeries, MetricTypes, metrics_of
from vllm_smart.reports.shared import SharedCounters

if TYPE_CHECKING:
    from vllm.v1.engine.core_client import AsyncMPClient

logger = init_logger("vllm.smart")

_EVERY_S = 1.0


class SmartStatLogger(AggregateStatLoggerBase):
    """Exports the counters of engines with trees; of others it does nothing."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]) -> None:
        """Args:
        vllm_config: of the front end.
        engine_indexes: data-parallel ranks of its engines.
        """
        self._series: dict[int, EngineSeries] = {}
        self._shared: dict[int, SharedCounters] = {}
        self._inquiry: Inquiry | None = None  # from `ask_through` on, until asking fails
        self._prefix = counters_prefix(vllm_config)
        # All API servers know the same engines; one of them speaks for all.
        if self._prefix is None or vllm_config.parallel_config._api_process_rank > 0:
            return
        metrics = metrics_of(_ray_types() if _is_ray_actor() else MetricTypes())
        model_name = vllm_config.model_config.served_model_name
        for rank in engine_indexes:
            self._series[rank] = EngineSeries(metrics, model_name, rank)
        threading.Thread(target=_look, args=(weakref.ref(self),), daemon=True).start()

    def look(self) -> None:
        """Export what has come since the last time."""
        assert self._prefix is not None
        for rank, series in self._series.items():
            if rank not in self._shared:
                shared = SharedCounters.take(self._prefix, rank)
                if shared is None:
                    continue
                self._shared[rank] = shared
            series.update(self._shared[rank].values, self._shared[rank].about)
        distant = self._series.keys() - self._shared.keys()
        if distant and self._inquiry is not None:
            self._ask(self._inquiry, distant)

    def ask_through(self, client: "AsyncMPClient") -> None:
        """Engines that share no memory with this process are asked from now on.

        To be called in the event loop that `client` belongs to.
        """
        self._inquiry = Inquiry(client, "smart_counted")

    def _ask(self, inquiry: Inquiry, ranks: Set[int]) -> None:
        try:
            answers = inquiry.answers()
        except Exception as error:
            self._inquiry = None
            logger.warning(
                "vllm_smart: /metrics has nothing new of engines %s from now on: they share no memory "
                "with this process, and asking them has failed: %r.",
                ", ".join(map(str, sorted(ranks))),
                error,
            )
            return
        for answer in answers:
            if answer["engine"] in ranks:
                self._series[answer["engine"]].update(np.array(answer["values"]), answer["about"])

    def record(self, *args: Any, **kwargs: Any) -> None:
        """What vLLM counts is not ours."""

    def log_engine_initialized(self) -> None:
        """Nothing to log."""


def _look(logger_ref: "weakref.ref[SmartStatLogger]") -> None:
    while (stat_logger := logger_ref()) is not None:
        stat_logger.look()
        del stat_logger
        time.sleep(_EVERY_S)


def _is_ray_actor() -> bool:
    """Whether this process serves inside Ray, which exports only metrics of its own kind."""
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized() and ray.get_runtime_context().get_actor_id())


def _ray_types() -> MetricTypes:
    from vllm.v1.metrics import ray_wrappers

    return MetricTypes(
        ray_wrappers.RayCounterWrapper,
        ray_wrappers.RayGaugeWrapper,
        ray_wrappers.RayHistogramWrapper,
    )
