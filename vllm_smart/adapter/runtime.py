"""What one worker knows about its trees: settings, costs, calibration and the trees themselves."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_smart.adapter.backlog import Backlog
from vllm_smart.adapter.growth_log import GrowthLog
from vllm_smart.adapter.launch import settings_source
from vllm_smart.adapter.metrics import StepStats
from vllm_smart.adapter.overhead import StepOverhead
from vllm_smart.adapter.reload import ConfigReload
from vllm_smart.adapter.step_plan import StepPlan, StepResult
from vllm_smart.adapter.tracing import StepTracing
from vllm_smart.adapter.tree_store import TreeStore
from vllm_smart.config import SmartConfig, SmartPolicyConfig
from vllm_smart.profiling import CostTable
from vllm_smart.proposer import CandidatePool
from vllm_smart.scheduler import (
    AcceptanceModel,
    BudgetPolicy,
    DraftGate,
    Drafting,
    Overheads,
    StepLoad,
    make_policy,
    needs_costs,
    usable_probs,
)

logger = init_logger("vllm.smart")


class TreeRuntime:
    """Shared by the speculator, which grows trees, and the model state, which verifies them."""

    def __init__(self, vllm_config: VllmConfig, config: SmartConfig) -> None:
        max_num_reqs = vllm_config.scheduler_config.max_num_seqs
        self.config = config
        self.limits = config.growth
        self.acceptance = AcceptanceModel(config.acceptance)
        self.store = TreeStore(max_num_reqs, self.limits.node_budget + 1)
        self.max_prefill_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        # [max_num_reqs] requests whose trees must be chains: a grammar checks drafts in order.
        self.chain_only = np.zeros(max_num_reqs, bool)
        self.stats = StepStats.open(vllm_config, config)
        self._world_size = vllm_config.parallel_config.world_size
        self.overhead = StepOverhead(self._world_size)
        self._is_first = vllm_config.parallel_config.rank == 0
        self.backlog: Backlog | None = None
        self._draft_group = 0
        self._overheads = Overheads(plain=None, tree=None)
        self._tracing: StepTracing | None = None
        self._reload: ConfigReload | None = None
        source = settings_source(vllm_config)
        if source is not None and config.hot_reload:
            if self._world_size == 1:
                self._reload = ConfigReload(source, config, self.reconfigure)
            else:
                logger.info("vllm_smart: with several ranks, edits of %s need a restart.", source)
        self.is_warming_up = False
        self._policy: BudgetPolicy | None = None
        self._gate: DraftGate | None = None
        self._table: CostTable | None = None

    def keep_backlog(self, backlog: Backlog, draft_group: int) -> None:
        """Follow what the drafter has read; its cache is KV cache group `draft_group`."""
        self.backlog, self._draft_group = backlog, draft_group

    def use_costs(self, table: CostTable | None) -> None:
        """Decide by `table` from now on; None for policies that need no costs."""
        self._table = table
        self.reconfigure(self.config)
        if self.config.trace.path is not None and self._is_first:
            self._tracing = StepTracing.start(self.config, table)

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Serve steps that mean nothing, before costs are known: with the largest trees.

        vLLM warms GPUs up with requests of its own making, which run all that real ones do.
        """
        limits, config = self.limits, self.config
        policy: dict[str, Any] = {"name": "off"}
        if limits.node_budget > 0:
            policy = {"name": "fixed_tree", "num_nodes": limits.node_budget, "depth": limits.depth}
            policy |= {"width": limits.width, "children": limits.children}
        self.reconfigure(SmartConfig.model_validate({**config.model_dump(), "policy": policy}))
        self.is_warming_up = True
        yield
        self.is_warming_up = False
        self._policy, self.config, self.limits = None, config, limits
        self.acceptance = AcceptanceModel(config.acceptance)
        self.overhead = StepOverhead(self._world_size)
        self.stats.reset()

    def reconfigure(self, config: SmartConfig) -> None:
        """Decide by the policy and growth limits of `config` from the next decision on.

        Its largest tree must fit the one that the engine was started with.

        Raises:
            CostTableError: the policy needs costs and there are none; nothing has changed then.
        """
        assert config.growth.node_budget < self.store.token.shape[1]
        self._policy = make_policy(config, self._table)
        self._gate = None
        if isinstance(config.policy, SmartPolicyConfig) and config.policy.may_turn_off:
            assert self._table is not None
            limits = config.growth
            self._gate = DraftGate(
                self._table, limits.node_budget, limits.depth, config.policy.probe_every
            )
        if config.acceptance != self.config.acceptance:
            self.acceptance = AcceptanceModel(config.acceptance)
        # Policies that weigh no costs order candidates as published, by what the draft says.
        self.accept = self.acceptance.predict if needs_costs(config) else _as_drafted
        self.config, self.limits = config, config.growth

    @property
    def policy(self) -> BudgetPolicy:
        assert self._policy is not None, "use_costs() comes before the first real step"
        return self._policy

    def add_request(self, slot: int, data: NewRequestData) -> None:
        """Learn what a request that was given `slot` allows."""
        params = data.sampling_params
        self.chain_only[slot] = params is not None and (
            params.structured_outputs is not None or params.thinking_token_budget is not None
        )
        if self.backlog is not None:
            num_cached = data.num_computed_tokens
            blocks = data.block_ids[self._draft_group][: num_cached // self.backlog.block_size]
            self.backlog.add_request(slot, num_cached, np.asarray(blocks, np.int64))

    def begin_step(self, input_batch: InputBatch) -> StepPlan:
        """The plan of the step that is about to run."""
        if self._reload is not None:
            self._reload.poll()
        plan = StepPlan.make(input_batch, self.store)
        if self.is_warming_up and self.backlog is not None:
            # vLLM's next step takes all drafts for accepted, whatever the walk says.
            self.backlog.skip_to(input_batch.idx_mapping_np, input_batch.num_computed_tokens_np)
        table, context = self._table, int(plan.root_pos.sum())
        timing = self.overhead.step_begins(
            time.perf_counter(),
            table.verify_ms(input_batch.num_tokens, context) if table is not None else 0.0,
            input_batch.num_reqs,
            bool(plan.trees.num_nodes.max() > 1),
            input_batch.has_prefill,
        )
        if timing is not None:
            if table is not None:
                self.stats.record_time(*timing)
            if self._tracing is not None:
                self._tracing.step_ended(timing[1])
        return plan

    def verified(self, plan: StepPlan, result: StepResult, last_sampled: torch.Tensor) -> None:
        """Learn from a step's walk: which children of accepted nodes were accepted.

        Args:
            last_sampled: [max_num_reqs, 1] last token of each request-state slot.
        """
        self._observe(plan)
        if self._tracing is not None:
            self._tracing.verified(plan, result, last_sampled.cpu().numpy()[:, 0])

    def who_drafts(self, load: StepLoad, num_unread: int) -> Drafting:
        """Whether drafting pays for a step of this load, and whether anything may be drafted."""
        self._overheads = self.overhead.at(load.num_requests)
        if self.limits.node_budget == 0:
            return Drafting.NONE
        if self._gate is None:
            return Drafting.ALL
        return self._gate.decide(load, num_unread, self._overheads)

    def read_ms(self, num_rows: int, num_requests: int) -> float:
        """Predicted time of the drafter's pass over rows it has not read; 0 if costs are unknown."""
        return self._table.read_ms(num_rows, num_requests) if self._table is not None else 0.0

    def _observe(self, plan: StepPlan) -> None:
        if plan.path is None or plan.num_accepted is None:
            return
        trees = plan.trees
        accepted = np.zeros((plan.path.shape[0], trees.parent.shape[1] + 1), bool)
        np.put_along_axis(accepted, plan.path, True, axis=1)  # -1 lands in the spare column
        accepted = accepted[:, :-1]
        tried = plan.is_node & np.take_along_axis(accepted, np.maximum(trees.parent, 0), axis=1)
        tried[:, 0] = False
        self.acceptance.observe(
            trees.draft_prob[tried], trees.depth[tried], trees.rank[tried], accepted[tried]
        )
        self.stats.record_walk(plan.num_accepted[trees.num_nodes > 1])

    def load(self, plan: StepPlan, result: StepResult) -> StepLoad:
        """What the next target step carries besides draft nodes, as far as this worker can know."""
        unfilled = np.maximum(plan.input_batch.prefill_len_np - result.end, 0)
        return StepLoad(
            num_requests=int(np.count_nonzero(result.emits)),
            num_prefill_tokens=min(int(unfilled.sum()), self.max_prefill_tokens),
            context_tokens=int(result.end.sum()),
        )

    def saw_level(self, pool: CandidatePool) -> None:
        """A level was drafted; its promises tell what to expect of the next steps' levels."""
        if needs_costs(self.config):
            self.acceptance.saw_level(pool.num_levels, pool.parent_mass, pool.child_mass)

    def rested(self, plan: StepPlan, result: StepResult, load: StepLoad) -> None:
        """The drafter has not run in this step, so the next one verifies nothing."""
        self.overhead.step_drafted(0.0, drafted=False)
        self.stats.record_rest()
        if self._tracing is not None:
            self._tracing.rested(plan, result, load, self._overheads)

    def drafted(self, plan: StepPlan, result: StepResult, log: GrowthLog) -> None:
        """Keep the trees that were grown in this step, and learn from them."""
        assert log.trees is not None
        self.store.put(result.slots[log.indices], log.trees)
        if self._gate is not None and len(log.grows):
            prob = usable_probs(log.pool, self.limits)[log.grows]
            self._gate.learn(prob, np.array(log.level_rows, np.int64))
        self.overhead.step_drafted(log.forwards_ms, drafted=True)
        self.stats.record_trees(log.trees, log.num_read, 1 + len(log.level_rows))
        if self._tracing is not None:
            self._tracing.drafted(plan, result, log, self._overheads)


def _as_drafted(draft_prob: np.ndarray, depth: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """An uncalibrated acceptance probability: the draft's own."""
    return draft_prob
