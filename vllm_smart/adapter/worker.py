"""vLLM's workers (`worker_cls`), with trees installed before they build their model runner."""

from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from vllm.logger import init_logger
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.worker.worker_base import CompilationTimes

from vllm_smart.adapter import async_schedule
from vllm_smart.adapter.engine_settings import has_tree_attention, smart_config
from vllm_smart.adapter.grammars import count_verdicts
from vllm_smart.adapter.saved_models import loading_saved_models
from vllm_smart.adapter.start_up import compiling, set_aside
from vllm_smart.adapter.wiring import install_in_worker
from vllm_smart.attention.backends import attention_with_trees
from vllm_smart.config import SmartConfig
from vllm_smart.kernels.cpu.ahead import wait_for_compiling
from vllm_smart.profiling import default_folder
from vllm_smart.scheduler import NOBODY, Queue
from vllm_smart.seams.host import is_cpu, runs_on_triton
from vllm_smart.seams.versions import masks_of, num_masks

if TYPE_CHECKING:
    from vllm_smart.adapter.costs import IdleTiming
    from vllm_smart.adapter.cuda.allocation import DraftAllocation

logger = init_logger("vllm.smart")

if is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as StockWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as StockWorker


class TreeWorker(StockWorker):
    """A worker whose runner speculates with trees once their costs are known."""

    # Of the latest step: as the scheduler made it, and as it runs; None before the first.
    _schedules: tuple[SchedulerOutput, SchedulerOutput] | None = None
    _idle_timing: "IdleTiming | None" = None  # until all is timed

    def init_device(self) -> None:
        install_in_worker()
        set_aside(collect=True)  # imports: Model Runner V2 collects again and again while it loads
        super().init_device()
        from vllm_smart.adapter.draft_tokens import TreeDraftTokensHandler

        self.model_runner.draft_tokens_handler = TreeDraftTokensHandler(
            self.device,
            is_ahead=self.scheduler_config.async_scheduling,
            parents_of=lambda slots: self.model_runner.speculator.runtime.parents_of(slots),
        )
        if self.vllm_config.lora_config is not None:
            from vllm_smart.adapter.lora import RowLoraState

            self.model_runner.lora_state = RowLoraState(self.model_runner)

    def load_model(self, **kwargs: Any) -> None:
        with attention_with_trees() if has_tree_attention(self.vllm_config) else nullcontext():
            super().load_model(**kwargs)
        from vllm_smart.adapter.drafter.without_model import SpeculatorWithoutModel

        if isinstance(self.model_runner.speculator, SpeculatorWithoutModel):
            self.model_runner.speculator.use(self.model_runner)

    @compiling
    def determine_available_memory(self) -> int:
        with loading_saved_models():
            return int(super().determine_available_memory())

    def compile_or_warm_up_model(self) -> CompilationTimes:
        from vllm_smart.adapter.costs import prepare_costs

        config = smart_config(self.vllm_config)
        assert config is not None
        if runs_on_triton():
            from vllm_smart.adapter.cuda.warm_up import warm_up

            warm_up(self.vllm_config, config.growth.node_budget + 1)
        elif not wait_for_compiling(default_folder()):
            logger.warning("vllm_smart: compiling loops ahead takes long; compiling here instead.")
        with self.model_runner.speculator.runtime.warming_up():
            times = super().compile_or_warm_up_model()
        self._idle_timing = prepare_costs(self.model_runner, config, self._rehearse)
        set_aside(collect=False)  # as GPU workers do, so that no step waits for a collection
        return times

    def _rehearse(self) -> None:
        if runs_on_triton():
            return  # vLLM's own warm-up has run requests
        from vllm_smart.growth.request_terms import MAX_NODES_KEY
        from vllm_smart.mrv2_cpu.first_requests import run_first_requests

        run_first_requests(self, num_masks, [None, {MAX_NODES_KEY: 0}])

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        self._draft()  # what the last step has put off, if nobody has asked for it
        runner, runtime = self.model_runner, self.model_runner.speculator.runtime
        runtime.waiting = Queue(*getattr(scheduler_output, async_schedule.WAITING, NOBODY))
        slot_of = runner.req_states.req_id_to_index
        runtime.add_blocks(scheduler_output.scheduled_cached_reqs, slot_of)
        for request in sorted(scheduler_output.finished_req_ids & slot_of.keys()):
            runtime.ended(slot_of[request])
        if runtime.is_warming_up:
            return super().execute_model(scheduler_output)
        if not self.scheduler_config.async_scheduling:
            schedule = async_schedule.without_padding(scheduler_output)
            self._schedules = scheduler_output, schedule
            return super().execute_model(schedule)
        if runtime.decides_on_device:
            runtime.allocation = self._allocation
            schedule = async_schedule.with_room(runtime.progress, scheduler_output, slot_of)
        else:
            runtime.allocation = None
            runtime.arrive()
            schedule = async_schedule.exact(runtime.progress, scheduler_output, slot_of)
        self._schedules = scheduler_output, schedule
        runner.adaptive_verification = runtime.allocation
        return super().execute_model(schedule)

    @cached_property
    def _allocation(self) -> "DraftAllocation":
        from vllm_smart.adapter.cuda.allocation import DraftAllocation

        runner = self.model_runner
        progress = runner.speculator.runtime.progress
        return DraftAllocation(runner, runner.model_state.device_trees, progress)

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        if grammar_output is not None and self._schedules is not None:
            scheduled, run = self._schedules
            if run is not scheduled:
                grammar_output = masks_of(grammar_output, scheduled, run)
            if not runs_on_triton():
                self._count_verdicts(grammar_output)
        return super().sample_tokens(grammar_output)

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        self._draft()
        return super().take_draft_token_ids()

    def _draft(self) -> None:
        """Draft what the last step has put off until its tokens were on their way."""
        runner = self.model_runner
        put_off = runner.speculator.runtime.take_put_off()
        if put_off is None:
            return
        batch = put_off.batch
        with torch.inference_mode():
            drafts = put_off.draft()
            if drafts is not None:
                runner.req_states.draft_tokens[batch.idx_mapping] = drafts
                runner.draft_tokens_handler.set_draft_tokens(batch, drafts)

    def _count_verdicts(self, grammar: GrammarOutput) -> None:
        runtime, plan = self.model_runner.speculator.runtime, self.model_runner.model_state.plan
        most_drafts = self.vllm_config.num_speculative_tokens
        count_verdicts(grammar, plan, most_drafts, runtime.reports.stats)

    # Called by name through vLLM's `collective_rpc`.

    def smart_queue(self, num_left: int, num_arrived: int, num_seats: int) -> None:
        """Who waits while the latest step's drafts are made; see `Queue`."""
        self.model_runner.speculator.runtime.waiting = Queue(num_left, num_arrived, num_seats)

    def smart_reconfigure(self, changes: dict[str, Any]) -> None:
        """Decide by other settings from the next step on; `changes` replace top-level sections."""
        runtime = self.model_runner.speculator.runtime
        settings = {**runtime.controller.config.model_dump(mode="json"), **changes}
        runtime.reconfigure(SmartConfig.model_validate(settings))

    def smart_time_step(self) -> float | None:
        """Time a step of an idle engine, if there is one left; seconds until the next, None = never."""
        if self._idle_timing is None:
            return None
        wait_s = self._idle_timing.run_one()
        if wait_s is None:
            self._idle_timing = None
        return wait_s

    def smart_table_name(self) -> str:
        """Of this engine's cost table, in whatever store it is."""
        from vllm_smart.adapter.cost_tables import table_key

        return table_key(self.vllm_config).file_name

    def smart_counters(self) -> dict[str, Any]:
        """What this worker has counted since it started; see `StepStats.counters`."""
        runtime = self.model_runner.speculator.runtime
        runtime.settle()
        return runtime.reports.stats.counters()

    def smart_counted(self) -> dict[str, Any]:
        """What a front end on another machine exports of this engine, without any waiting."""
        return {"engine": self._engine_rank, **self.model_runner.speculator.runtime.reports.counted()}

    def smart_look(self) -> dict[str, Any]:
        """What there is to see of this engine, without any waiting; see `StepReports.look`."""
        runtime = self.model_runner.speculator.runtime
        return {"engine": self._engine_rank, **runtime.reports.look(runtime.controller)}

    @property
    def _engine_rank(self) -> int:
        """Its data-parallel rank."""
        rank: int = self.vllm_config.parallel_config.data_parallel_index
        return rank
