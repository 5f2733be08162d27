"""Feeds what steps decide and what comes of it to a trace, where one is asked for."""

import atexit
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vllm_smart.config import SmartConfig
from vllm_smart.growth.log import GrowthLog
from vllm_smart.profiling import Correction, CostTable
from vllm_smart.scheduler import StepLoad
from vllm_smart.step import StepPlan, StepResult
from vllm_smart.trace import Growth, StepRecorder, TraceWriter

logger = logging.getLogger("vllm.smart")


class StepTracing:
    """One engine's trace; silent once it has reached its largest size."""

    def __init__(self, recorder: StepRecorder) -> None:
        self._recorder = recorder
        atexit.register(recorder.close)

    @classmethod
    def start(cls, config: SmartConfig, costs: CostTable | None) -> "StepTracing":
        """Open the trace that `config` asks for."""
        assert config.trace.path is not None
        writer = TraceWriter(config.trace.path, config.trace.max_mb)
        logger.info("vllm_smart: steps are traced to %s.", writer.path)
        return cls(StepRecorder(writer, config, costs))

    def costs_changed(self, costs: CostTable) -> None:
        """Later decisions are made by other costs."""
        self._recorder.costs_changed(costs)

    def step_ended(self, measured_ms: float) -> None:
        """The latest step lasted so long."""
        self._recorder.step_ended(measured_ms)

    def verified(self, plan: StepPlan, result: StepResult, last_sampled: np.ndarray) -> None:
        """What came of the latest decision.

        Args:
            last_sampled: [max_num_reqs] last token of each request-state slot.
        """
        if not self._recorder.is_open:
            return
        path = plan.path
        if path is None:
            path = np.zeros((len(result.slots), 1), np.int64)
        requests = plan.input_batch.req_ids
        self._recorder.verified(
            requests, result.emits, plan.trees.num_nodes, path, last_sampled[result.slots]
        )

    def drafted(
        self, plan: StepPlan, result: StepResult, log: GrowthLog, correction: Correction | None
    ) -> None:
        """The decision of a step that drafts."""
        if not self._recorder.is_open:
            return
        assert log.allocation is not None
        requests = plan.input_batch.req_ids
        rests = result.emits.copy()
        rests[log.indices] = False
        growth = Growth(
            drafting=log.drafting,
            max_depth=log.bounds.useful_depth,
            max_rows=log.bounds.most_rows,
            max_width=log.bounds.max_width,
            read_rows=log.num_read,
            sunk_rows=log.num_read - log.num_usual,
            candidate_rows=len(log.grows),
            level_rows=log.level_rows,
            child_acceptance=log.child_acceptance,
            correction=correction,
            spent_ms=log.spent_ms,
            undrafted=_chosen(requests, rests),
            is_coupled=log.is_coupled,
        )
        self._recorder.decided(
            [requests[index] for index in log.indices],
            result.emits[log.indices],
            log.candidates,
            growth,
            log.load,
            replace(log.allocation, num_draft_nodes=log.trees.num_nodes.astype(np.int64) - 1),
        )

    def rested(
        self,
        plan: StepPlan,
        result: StepResult,
        load: StepLoad,
        correction: Correction | None,
        predicted_ms: float,
    ) -> None:
        """The decision of a step in which the drafter does not run."""
        if not self._recorder.is_open:
            return
        requests = _chosen(plan.input_batch.req_ids, result.emits)
        self._recorder.did_not_draft(requests, load, correction, predicted_ms)


def _chosen(requests: Sequence[str], chosen: np.ndarray) -> list[str]:
    return [requests[index] for index in np.flatnonzero(chosen)]
