"""What users see of a worker's steps: counters for `/metrics`, and the trace."""

import logging

from vllm_smart.config import SmartConfig
from vllm_smart.growth.log import GrowthLog
from vllm_smart.profiling import CostTable
from vllm_smart.reports.jit import CompilationWatch
from vllm_smart.reports.stats import StepStats
from vllm_smart.reports.tracing import StepTracing
from vllm_smart.scheduler import Controller, StepLoad
from vllm_smart.step import StepPlan, StepResult

logger = logging.getLogger("vllm.smart")


class StepReports:
    """Counts every step, and traces those of the first rank where that is asked for."""

    def __init__(self, stats: StepStats, config: SmartConfig, is_first: bool) -> None:
        """Args:
        stats: to count into.
        config: says whether steps are traced.
        is_first: whether this is the first of the ranks, which would all trace the same.
        """
        self.stats = stats
        self._config = config
        self._traces = config.trace.path is not None and is_first
        self._compilations: CompilationWatch | None = None  # from `start` on
        self.tracing: StepTracing | None = None  # from `start` on, where it is asked for

    def start(self, table: CostTable | None) -> None:
        """Real steps begin, by the costs of `table`."""
        if self._compilations is None:
            self._compilations = CompilationWatch(self._compiled)
        if self._traces:
            self.tracing = StepTracing.start(self._config, table)

    def costs_changed(self, table: CostTable) -> None:
        """Later steps are decided by the costs of `table`."""
        if self.tracing is not None:
            self.tracing.costs_changed(table)

    def _compiled(self, what: str) -> None:
        self.stats.record_compilation()
        logger.warning("vllm_smart: requests have waited while %s was compiled.", what)

    def timed(self, predicted_ms: float | None, measured_ms: float) -> None:
        """The latest step lasted so long."""
        if predicted_ms is not None:
            self.stats.record_time(predicted_ms, measured_ms)
        if self.tracing is not None:
            self.tracing.step_ended(measured_ms)

    def rested(
        self, plan: StepPlan, result: StepResult, load: StepLoad, controller: Controller
    ) -> None:
        """The drafter has not run in a step, so the next one verifies nothing."""
        self.stats.record_rest()
        if self.tracing is not None:
            plain_ms = controller.plain_ms(load)
            self.tracing.rested(plan, result, load, controller.correction, plain_ms)

    def drafted(
        self, plan: StepPlan, result: StepResult, log: GrowthLog, controller: Controller
    ) -> None:
        """Trees were grown in a step."""
        num_levels = 1 + len(log.level_rows) if log.num_read else 0
        self.stats.record_trees(log.trees, log.num_read, num_levels)
        if self.tracing is not None:
            self.tracing.drafted(plan, result, log, controller.correction)
