"""What users see of a worker's steps: counters for `/metrics`, and the trace."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

import vllm_smart
from vllm_smart.config import SmartConfig
from vllm_smart.growth.log import GrowthLog
from vllm_smart.kernels.evidence import GRAMMAR, NGRAM
from vllm_smart.profiling import Correction, CostTable, StepTime, plain_ms_of
from vllm_smart.reports.families import NUM_VALUES
from vllm_smart.reports.jit import CompilationWatch
from vllm_smart.reports.look import LatestTrees, seen
from vllm_smart.reports.shared import SharedCounters
from vllm_smart.reports.stats import StepStats
from vllm_smart.reports.tracing import StepTracing
from vllm_smart.scheduler import Controller, Explanation, StepLoad
from vllm_smart.step import StepPlan, StepResult
from vllm_smart.tree import TreeBatch

logger = logging.getLogger("vllm.smart")


class StepReports:
    """Counts every step, and traces those of the first rank where that is asked for."""

    def __init__(
        self, shared: SharedCounters | None, config: SmartConfig, is_first: bool, has_page: bool
    ) -> None:
        """Args:
        shared: to count into; None = nobody reads it.
        config: says whether steps are traced.
        is_first: whether this is the first of the ranks, which would all trace the same.
        has_page: whether somebody may want to see the latest trees.
        """
        self._shared = shared
        self._values = shared.values if shared is not None else np.zeros(NUM_VALUES)
        self.stats = StepStats(self._values)
        self._trees = LatestTrees(config.page.texts) if has_page else None
        self._config = config
        self._traces = config.trace.path is not None and is_first
        self._compilations: CompilationWatch | None = None  # from `start` on
        self._shown: Correction | None = None
        both = config.ngrams is not None and config.drafter.is_model
        self._about = {
            "version": vllm_smart.__version__,
            "policy": config.policy.name,
            "drafter": f"{config.drafter.method}+ngram" if both else config.drafter.method,
            "table": "none",
        }
        self.tracing: StepTracing | None = None  # from `start` on, where it is asked for

    def start(self, table: CostTable | None) -> None:
        """Real steps begin, by the costs of `table`."""
        self._describe()
        if self._trees is not None:
            self._trees.forget()
        if self._compilations is None:
            self._compilations = CompilationWatch(self._compiled)
        if self._traces:
            self.tracing = StepTracing.start(self._config, table)

    def counted(self) -> dict[str, Any]:
        """All counters, as `stats.views` reads them, and what the engine speculates by; plain data."""
        return {"values": self._values.tolist(), "about": dict(self._about)}

    def look(self, controller: Controller) -> dict[str, Any]:
        """What there is to see at present: what was counted, and `look.seen`."""
        return {**self.counted(), **seen(controller.cost, self._trees)}

    def verified(self, trees: TreeBatch, path: np.ndarray) -> None:
        """A step's trees were walked; arguments as for `LatestTrees.verified`."""
        if self._trees is not None:
            self._trees.verified(trees, path)

    def costs_changed(self, table: CostTable) -> None:
        """Later steps are decided by the costs of `table`."""
        if self.tracing is not None:
            self.tracing.costs_changed(table)

    def show_table(self, name: str, expected: Sequence[Explanation]) -> None:
        """What the table in effect, called `name`, is expected to bring by batch size."""
        self.stats.show_table(expected)
        self._describe(table=name)

    def reconfigured(self, config: SmartConfig) -> None:
        """Decisions are made by `config` from now on."""
        self._describe(policy=config.policy.name)

    def _describe(self, **changes: str) -> None:
        self._about |= changes
        if self._shared is not None:
            self._shared.describe(self._about)

    def _compiled(self, what: str) -> None:
        self.stats.record_compilation()
        logger.warning("vllm_smart: requests have waited while %s was compiled.", what)

    def timed(
        self, time: StepTime, emitted: np.ndarray | None, num_nodes: int, controller: Controller
    ) -> None:
        """The latest step lasted so long.

        Args:
            emitted: [num_emitting] tokens that it emitted; None where each request emitted one.
            num_nodes: that it verified.
        """
        if controller.cost is not None:
            tokens_each = float(emitted.mean()) if emitted is not None and len(emitted) else 1.0
            plain_ms = plain_ms_of(time, tokens_each, num_nodes, controller.cost)
            self.stats.record_time(time.shape.num_requests, time.measured_ms / 1e3, plain_ms / 1e3)
        if time.predicted_ms is not None:
            self.stats.record_prediction(time.predicted_ms / 1e3, time.measured_ms / 1e3)
        if self.tracing is not None:
            self.tracing.step_ended(time.measured_ms)

    def rested(
        self, plan: StepPlan, result: StepResult, load: StepLoad, controller: Controller
    ) -> None:
        """The drafter has not run in a step, so the next one verifies nothing."""
        self.stats.record_rest(load.num_requests, controller.why_at_rest(load))
        self._show(controller)
        if self.tracing is not None:
            plain_ms = controller.plain_ms(load)
            self.tracing.rested(plan, result, load, controller.correction, plain_ms)

    def drafted(
        self, plan: StepPlan, result: StepResult, log: GrowthLog, controller: Controller
    ) -> None:
        """Trees were grown in a step."""
        trees = log.trees
        num_levels = 1 + len(log.level_rows) if log.num_read else 0
        is_drafted = trees.is_node() & (trees.source != NGRAM) & (trees.source != GRAMMAR)
        used_levels = int(trees.depth.max(where=is_drafted, initial=0))
        if log.is_beside:  # what it has waited for; other levels are counted where they are run
            num_levels = used_levels = len(log.level_rows)
        num_requests = log.load.num_requests
        self.stats.record_trees(trees, log.num_read, num_levels, used_levels, num_requests)
        if not log.num_read:
            self.stats.record_rest_of_drafter(controller.why_at_rest(log.load))
        self._show(controller)
        if self.tracing is not None:
            self.tracing.drafted(plan, result, log, controller.correction)

    def _show(self, controller: Controller) -> None:
        self.stats.show_gate(*controller.gate_state)
        correction = controller.correction
        if correction is not None and correction is not self._shown:
            self._shown = correction
            self.stats.show_correction(correction)
