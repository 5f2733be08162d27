"""What one worker's trees share: the controller, the trees themselves, counters and the trace."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.utils.gpu_sync_debug import gpu_sync_allowed
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.cost_tables import models_by_content
from vllm_smart.adapter.counters import shared_counters
from vllm_smart.adapter.engine_settings import has_page, settings_source
from vllm_smart.adapter.grammars import make_grammars
from vllm_smart.adapter.ngrams import is_sampled, make_ngrams
from vllm_smart.config import GrowthLimits, SmartConfig
from vllm_smart.config.reload import ConfigReload
from vllm_smart.growth.log import GrowthLog
from vllm_smart.growth.loops import compile_loops
from vllm_smart.growth.request_terms import RequestTerms
from vllm_smart.profiling import CostTable
from vllm_smart.proposer import CandidatePool, EvidencePool, StepGrammars
from vllm_smart.proposer.backlog import Backlog
from vllm_smart.proposer.block_marks import BlockMarks
from vllm_smart.reports.outcomes import learn_from_walk
from vllm_smart.reports.step_reports import StepReports
from vllm_smart.scheduler import NOBODY, Controller, StepLoad
from vllm_smart.scheduler.acceptance_file import AcceptanceFile
from vllm_smart.seams.host import runs_on_triton
from vllm_smart.step import StepPlan, StepResult, TreeStore
from vllm_smart.step.progress import Progress
from vllm_smart.step.states import ArrivedStep, QueuedStep, StepRemainder
from vllm_smart.tree import TreeBatch

if TYPE_CHECKING:
    from vllm_smart.adapter.cuda.allocation import DraftAllocation
    from vllm_smart.adapter.drafter.target_noise import TargetNoise
    from vllm_smart.adapter.overlap.boards import Boards

logger = init_logger("vllm.smart")


@dataclass(frozen=True)
class PutOff:
    """Drafting that waits until vLLM has sent its step's tokens on their way."""

    batch: InputBatch
    # Returns [num_reqs, num_speculative_tokens] int64 draft tokens of the batch; None = no tree.
    draft: Callable[[], torch.Tensor | None]


class TreeRuntime:
    """Shared by the speculator, which grows trees, and the model state, which verifies them."""

    def __init__(self, vllm_config: VllmConfig, config: SmartConfig, req_states: RequestState) -> None:
        self.max_num_reqs = vllm_config.scheduler_config.max_num_seqs
        self.settings = config  # as the engine was started
        self.store = TreeStore(self.max_num_reqs, config.growth.node_budget + 1)
        self.terms = RequestTerms(self.max_num_reqs, on_host=not runs_on_triton())
        self.ngrams = make_ngrams(vllm_config, config, req_states)
        # What the drafter's candidates are coupled to; None where they are not.
        self.noise: TargetNoise | None = None
        # Where a drafter in another process is told of requests; None where there is none.
        self.boards: Boards | None = None
        self._is_ahead = vllm_config.scheduler_config.async_scheduling
        self.waiting = NOBODY  # who waits, as far as it is known
        self._put_off: PutOff | None = None
        self.max_prefill_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        # With several ranks each would learn other costs and grow other trees.
        self._is_alone = vllm_config.parallel_config.world_size == 1
        is_first = vllm_config.parallel_config.rank == 0
        counters, page = shared_counters(vllm_config), has_page(vllm_config)
        self.reports = StepReports(counters, config, is_first, page)
        # None where drafts know nothing of grammars.
        self.grammars = make_grammars(vllm_config, config, req_states, self.reports.stats)
        self.backlog: Backlog | None = None
        self._marks: BlockMarks | None = None
        self._draft_group = 0
        self._acceptance_file: AcceptanceFile | None = None
        if config.acceptance.is_kept:
            self._acceptance_file = AcceptanceFile(
                config.acceptance,
                *_names_of_models(vllm_config, config),
                lambda: self.controller.acceptance,
                saves=is_first,
            )
        self._table: CostTable | None = None
        self._controller: Controller | None = None
        # Of the latest step, if it verified trees: slots of the requests that emitted, how many tokens
        # each, and how many nodes were verified.
        self._emitted: tuple[np.ndarray, np.ndarray, int] | None = None
        self._reload: ConfigReload | None = None
        source = settings_source(vllm_config)
        if source is not None and config.hot_reload:
            if self._is_alone:
                self._reload = ConfigReload(source, config, self.reconfigure)
            else:
                logger.info("vllm_smart: with several ranks, edits of %s need a restart.", source)
        self.is_warming_up = False
        self.looks_up = False  # whether n-grams are looked up in the present step
        self._rehearses = False
        self.progress = Progress(self.max_num_reqs)
        # Of the present step; None where the host knows what is verified before it is queued.
        self.allocation: DraftAllocation | None = None
        self._may_branch = False  # whether there may be trees that are not chains
        self._latest: QueuedStep | ArrivedStep | None = None  # None: it has been learnt from
        self._newcomers: list[tuple[int, NewRequestData]] = []  # while a step before them teaches
        self._begun: tuple[StepPlan, float] | None = None  # the present step, and when it began

    def is_coupled(self, slots: np.ndarray) -> np.ndarray | None:
        """[num_reqs] bool, whose candidates are ranked by the target's noise; None = nobody's."""
        return self.noise.is_coupled[slots] if self.noise is not None else None

    @property
    def tells_scheduler(self) -> bool:
        """Whether the scheduler waits for what is grown.

        Where it does not, and in vLLM's warm-up, it leaves room in any case: rows of no node need some
        token that the model knows.
        """
        return not (self._is_ahead or self.is_warming_up)

    def put_off(self, drafting: PutOff) -> None:
        """Draft when the scheduler asks for it. Users have the step's tokens by then."""
        assert self._put_off is None, "the step before has not drafted"
        self._put_off = drafting

    def take_put_off(self) -> PutOff | None:
        """The drafting that was put off, once; None if there is none."""
        put_off, self._put_off = self._put_off, None
        return put_off

    def parents_of(self, slots: np.ndarray) -> dict[int, list[int]]:
        """How trees branch that a grammar is to be walked along, by request.

        Args:
            slots: [num_reqs] of requests.

        Returns:
            [node_budget] the node before each draft node, counted without the root, which is -1.
        """
        is_checked = self.terms.has_grammar[slots] & ~self.terms.chain_only[slots]
        parent = self.store.parent
        return {int(req): (parent[slots[req], 1:] - 1).tolist() for req in np.flatnonzero(is_checked)}

    def queue(self, remainder: StepRemainder) -> None:
        """Go on without waiting for the present step."""
        assert self._latest is None, "the step before has not been learnt from"
        self._latest = QueuedStep(remainder)

    def arrive(self) -> None:
        """Have the latest step's trees; waits if the device is still at it."""
        if isinstance(self._latest, QueuedStep):
            with gpu_sync_allowed():
                self._latest = self._latest.arrive()
        for slot, data in self._newcomers:  # what came of the step may concern the slot's last request
            self.progress.add_request(slot, data.num_computed_tokens)

    def settle(self) -> None:
        """Learn what is left to be learnt of the latest step; waits if the device is still at it."""
        self.arrive()
        if isinstance(self._latest, ArrivedStep):
            latest, self._latest = self._latest, None
            with gpu_sync_allowed():
                latest.learn()
        newcomers, self._newcomers = self._newcomers, []
        for slot, data in newcomers:
            self._welcome(slot, data)

    @property
    def is_tracing(self) -> bool:
        """Whether steps are written to a trace."""
        return self.reports.tracing is not None

    @property
    def decides_on_device(self) -> bool:
        """Whether trees are grown and chosen on the device, as the policy in effect allows it."""
        policy = self.controller.policy
        if not runs_on_triton():
            return False
        if self.ngrams is not None:
            logger.info_once(
                "vllm_smart: n-grams are looked up on the host: every step waits for the GPU, and so "
                "does every draft level."
            )
            return False
        if not policy.has_spec:
            logger.info_once(
                "vllm_smart: policy %s is decided on the host: every draft level waits for the GPU.",
                self.controller.config.policy.name,
            )
        return policy.has_spec

    def keep_backlog(self, backlog: Backlog, marks: BlockMarks | None, draft_group: int) -> None:
        """Follow what the drafter has read; its cache is KV cache group `draft_group`."""
        self.backlog, self._marks, self._draft_group = backlog, marks, draft_group

    def use_costs(self, table: CostTable | None, rehearse: Callable[[], None] = lambda: None) -> None:
        """Decide by `table` from now on.

        Args:
            table: None for policies that need no costs.
            rehearse: runs requests that mean nothing; what they teach is forgotten.
        """
        self._table = table
        self.controller = self.new_controller(self.settings)
        compile_loops(self.controller, self.new_pool, self.ngrams)
        self._rehearses = True
        rehearse()
        self.catch_up()
        self._rehearses = False
        self.controller = self.new_controller(self.settings)  # one that has seen nothing
        self.reports.stats.reset()
        if self._acceptance_file is not None and self._acceptance_file.restore():
            self.controller.knows_acceptance()
        self.reports.start(table)

    def use_measured(self, table: CostTable) -> None:
        """Decide by `table` from the next step on; what was learnt of acceptance stays."""
        self.settle()
        self._table = table
        self.controller.use_table(table)
        self.reports.costs_changed(table)

    def new_controller(self, config: SmartConfig) -> Controller:
        """A controller that has learnt nothing yet; to be assigned to `controller`."""
        sees_arrivals = not self._is_ahead
        return Controller(config, self._table, self.max_num_reqs, self._is_alone, sees_arrivals)

    @property
    def controller(self) -> Controller:
        """What decides at present. Another may be put in its place between two steps."""
        assert self._controller is not None, "use_costs() comes before the first real step"
        return self._controller

    @controller.setter
    def controller(self, controller: Controller) -> None:
        self.settle()
        self._controller = controller

    @property
    def limits(self) -> GrowthLimits:
        """How far trees may grow at present."""
        return self._controller.limits if self._controller is not None else self.settings.growth

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Serve steps that mean nothing, before costs are known: with the largest trees.

        vLLM warms GPUs up with requests of its own making, which run all that real ones do.
        """
        limits = self.settings.growth
        policy: dict[str, Any] = {"name": "off"}
        if limits.node_budget > 0:
            policy = {"name": "fixed_tree", "num_nodes": limits.node_budget, "depth": limits.depth}
            policy |= {"width": limits.width, "children": limits.children}
        settings = {**self.settings.model_dump(mode="json"), "policy": policy}
        self.controller = self.new_controller(SmartConfig.model_validate(settings))
        self.is_warming_up = True
        yield
        self.settle()
        self.is_warming_up = False
        self._controller = None
        self.reports.stats.reset()

    def reconfigure(self, config: SmartConfig) -> None:
        """Decide by `config` from the next decision on; its largest tree must fit the engine's.

        Raises:
            ConfigError: it has trees, and the engine runs chains.
            CostTableError: the policy needs costs and there are none.
            Nothing has changed then.
        """
        config = config.with_shape_of(self.settings)
        assert config.growth.node_budget < self.store.token.shape[1]
        self.settle()
        self.controller.reconfigure(config)
        self.reports.reconfigured(config)

    def add_request(self, slot: int, data: NewRequestData) -> None:
        """Learn what a request that was given `slot` allows."""
        self.progress.add_request(slot, data.num_computed_tokens)
        if self._marks is not None:
            self._marks.add_request(slot, data.block_ids[self._draft_group])
        if self._latest is None:
            self._welcome(slot, data)
        else:  # likewise what it teaches
            self._newcomers.append((slot, data))

    def add_blocks(self, running: CachedRequestData, slot_of: Mapping[str, int]) -> None:
        """Requests that have run before were given further blocks; `slot_of`: slots by request id."""
        if self._marks is None:
            return
        for request, blocks in zip(running.req_ids, running.new_block_ids, strict=True):
            if blocks is not None:
                self._marks.add_blocks(slot_of[request], blocks[self._draft_group])

    def ended(self, slot: int) -> None:
        """The request in `slot` has ended."""
        if self.ngrams is not None:
            self.ngrams.ended(slot)
        if self.boards is not None:
            self.boards.ended(slot)
        if self.grammars is not None:
            self.grammars.ended(slot)

    def _welcome(self, slot: int, data: NewRequestData) -> None:
        weight = self.terms.add_request(slot, data)
        if self.ngrams is not None:
            # What a rehearsal answers must not be found in other texts later.
            self.ngrams.add_request(slot, None if self._rehearses else data)
        is_coupled = self.noise is not None and self.noise.add_request(slot, data.sampling_params)
        is_bound = self.grammars is not None and self.grammars.add_request(slot, data)
        self.controller.add_request(slot, weight, is_coupled, is_bound)
        if self.boards is not None:
            self.boards.add_request(slot, data)
        if self.backlog is not None:
            num_cached = data.num_computed_tokens
            blocks = data.block_ids[self._draft_group][: num_cached // self.backlog.block_size]
            self.backlog.add_request(slot, num_cached, np.asarray(blocks, np.int64))

    def begin_step(self, input_batch: InputBatch) -> StepPlan:
        """The plan of the step that is about to run."""
        begin_s = time.perf_counter()
        self.catch_up()  # a step that samples nothing has not
        if self.allocation is not None:
            # For good: a request that was skipped keeps a tree from before the settings changed.
            self._may_branch |= self.limits.children > 1
            plan = StepPlan.ahead(input_batch, self.store, self._may_branch)
        else:
            self.arrive()
            plan = StepPlan.make(input_batch, self.store)
        if self.is_warming_up and self.backlog is not None:
            # vLLM's next step takes all drafts for accepted, whatever the walk says.
            self.settle()
            self.backlog.skip_to(input_batch.idx_mapping_np, input_batch.num_computed_tokens_np)
        self._begun = plan, begin_s
        return plan

    def complete(self, plan: StepPlan) -> None:
        """Make a plan exact that was made ahead; waits until the step before has ended."""
        if plan.is_complete:
            return
        self.arrive()
        counts = None
        if plan.has_drafts:
            assert self.allocation is not None
            assert self.allocation.counts is not None
            with gpu_sync_allowed():
                (counts,) = self.allocation.counts.wait()
        plan.complete(self.progress.ends(plan.input_batch.idx_mapping_np), counts, self.store)

    def catch_up(self) -> None:
        """Learn what the step before the present one has to teach.

        On GPUs that takes the host while the device runs the present step's forward.
        """
        if self._begun is None:
            return
        (plan, begin_s), self._begun = self._begun, None
        self.settle()
        self.complete(plan)
        if not self._rehearses:
            if self._reload is not None:
                self._reload.poll()
            if self._acceptance_file is not None:
                self._acceptance_file.poll(time.monotonic())
        input_batch = plan.input_batch
        timing = self.controller.clock.begins(
            begin_s,
            plan.shape,
            input_batch.has_prefill,
            input_batch.has_prefill
            and bool((input_batch.num_computed_tokens_np < input_batch.prefill_len_np).all()),
        )
        if timing is not None:
            slots, num_tokens, num_nodes = self._emitted or (None, None, 0)
            self.reports.timed(timing, num_tokens, num_nodes, self.controller)
            if slots is not None and num_tokens is not None:
                self.controller.weights.observe(slots, num_tokens, timing.measured_ms)
        self._emitted = None

    def verified(self, plan: StepPlan, result: StepResult, last_sampled: np.ndarray | None) -> None:
        """Learn from a step's walk: which children of accepted nodes were accepted.

        Args:
            last_sampled: [max_num_reqs] last token of each request-state slot; None without a trace.
        """
        if plan.path is not None and plan.num_accepted is not None:
            learn_from_walk(plan, self.controller, self.reports.stats)
            self.reports.verified(plan.trees, plan.path)
            if self.ngrams is not None:
                self.ngrams.accepted(int(plan.num_accepted[result.emits].sum()))
            num_tokens = plan.num_accepted[result.emits] + np.float32(1.0)
            num_nodes = int(plan.trees.num_nodes.sum()) - len(plan.trees.num_nodes)
            self._emitted = result.slots[result.emits], num_tokens, num_nodes
        tracing = self.reports.tracing
        if tracing is not None and last_sampled is not None:
            tracing.verified(plan, result, last_sampled)

    def settle_ngrams(self, result: StepResult, temperature: torch.Tensor) -> None:
        """Index what a step has emitted, and learn from it which n-grams go on.

        Args:
            temperature: [max_num_reqs] float32 by request-state slot.
        """
        self.looks_up = self.ngrams is not None and self.ngrams.is_due()
        if self.ngrams is not None and self.looks_up:
            learns = self.controller.acceptance.config.calibrate
            model = self.controller.acceptance.evidence if learns else None
            self.ngrams.settled(result, is_sampled(temperature, result.slots), model)
            self.reports.stats.record_lookup(self.ngrams.take_seconds())

    def load(self, plan: StepPlan, result: StepResult) -> StepLoad:
        """What the next target step carries besides draft nodes, as far as this worker can know."""
        num_waiting = self.controller.num_waiting
        if plan.is_plain:
            num_reqs = len(result.end)
            return StepLoad(num_reqs, 0, plan.num_computed + num_reqs, num_waiting(self.waiting, 0))
        unfilled = np.maximum(plan.input_batch.prefill_len_np - result.end, 0)
        return StepLoad(
            num_requests=int(np.count_nonzero(result.emits)),
            num_prefill_tokens=min(int(unfilled.sum()), self.max_prefill_tokens),
            context_tokens=int(result.end.sum()),
            num_waiting=num_waiting(self.waiting, int(np.count_nonzero(unfilled))),
        )

    def new_pool(self, slots: np.ndarray, is_sampled: np.ndarray | None) -> CandidatePool:
        """An empty pool for the requests in `slots`.

        Args:
            is_sampled: [len(slots)] bool, whether each draws at a temperature; for n-grams alone.
        """
        controller, most_forced = self.controller, 0
        weight, max_nodes = controller.value_of(slots), self.terms.max_nodes_of(slots)
        if self.grammars is not None and self.grammars.are_any:
            most_forced = controller.limits.node_budget
        if self.ngrams is not None:
            assert is_sampled is not None
            chain_only = self.terms.chain_only[slots]
            scores = controller.evidence_scores(slots, is_sampled, chain_only)
            most = self.ngrams.limits.max_nodes
            return EvidencePool(
                len(slots), controller.limits, most, scores, weight, max_nodes, most_forced
            )
        return CandidatePool(
            len(slots),
            controller.limits,
            lambda prob, depth, req: controller.accept(prob, depth, slots[req]),
            weight,
            max_nodes,
            most_forced,
        )

    def step_grammars(
        self, slots: np.ndarray, end: np.ndarray, emits: np.ndarray, deepest: np.ndarray
    ) -> StepGrammars:
        """What is known of the grammars of a step's requests.

        Args:
            slots: [num_reqs] of the requests.
            end: [num_reqs] position of each root.
            emits: [num_reqs] bool, whose root is known.
            deepest: [num_reqs] deeper nodes would be wasted.
        """
        limits, grammars = self.limits, self.grammars
        found = grammars.of_step(slots, end, emits) if grammars is not None else {}

        def give_up(req: int, error: Exception) -> None:
            assert grammars is not None
            grammars.give_up(int(slots[req]), error)

        return StepGrammars(
            found,
            grammars.num_words if grammars is not None else 0,
            np.minimum(deepest, limits.node_budget),
            limits.depth,
            give_up,
        )

    def keep(self, result: StepResult, drafting: np.ndarray, trees: TreeBatch | None) -> None:
        """A step has ended: keep what the next one verifies; arguments as for `Progress.stepped`."""
        self.progress.stepped(result, drafting, trees)
        if trees is not None:
            self.store.put(result.slots[drafting], trees)

    def drafted(
        self, plan: StepPlan, result: StepResult, load: StepLoad, log: GrowthLog | None
    ) -> None:
        """Learn from the trees that were grown in this step.

        Args:
            load: of the step that will verify them.
            log: None where nothing was grown, so that the next step verifies nothing.
        """
        controller = self.controller
        if log is None:
            controller.clock.rested()
            self.reports.rested(plan, result, load, controller)
            return
        controller.drafted(log.candidates, log.grows, log.level_rows, log.undrafted, log.is_beside)
        if log.without is not None and log.allocation is not None:
            controller.gained(log.without, log.allocation.choice, load)
        if log.num_read:
            controller.clock.drafted(log.num_read, len(log.grows), log.level_rows)
        else:
            controller.clock.rested()
        self.reports.drafted(plan, result, log, controller)


def _names_of_models(vllm_config: VllmConfig, config: SmartConfig) -> tuple[str, str]:
    """Of target and drafter, whose acceptance is kept: for replicas, which may have them elsewhere,
    by content.
    """
    spec = vllm_config.speculative_config
    assert spec is not None
    if config.acceptance.shared_dir is not None:
        return models_by_content(vllm_config)
    return vllm_config.model_config.model, f"{spec.method}:{spec.model}"
