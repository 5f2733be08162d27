"""What one worker knows about its trees: settings, costs, calibration and the trees themselves."""

import time

import numpy as np
from vllm.config import VllmConfig
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_smart.adapter.metrics import StepStats
from vllm_smart.adapter.overhead import StepOverhead
from vllm_smart.adapter.step_plan import StepPlan
from vllm_smart.adapter.tree_store import TreeStore
from vllm_smart.config import SmartConfig
from vllm_smart.profiling import CostTable
from vllm_smart.scheduler import (
    AcceptanceModel,
    Allocation,
    BudgetPolicy,
    StepLoad,
    make_policy,
    needs_costs,
)
from vllm_smart.tree import TreeBatch


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
        self.overhead = StepOverhead(vllm_config.parallel_config.world_size)
        self._policy: BudgetPolicy | None = None
        self._table: CostTable | None = None

    def use_costs(self, table: CostTable | None) -> None:
        """Decide by `table` from now on; None for policies that need no costs."""
        self._table = table
        self.reconfigure(self.config)

    def reconfigure(self, config: SmartConfig) -> None:
        """Decide by the policy and growth limits of `config` from the next decision on.

        Its largest tree must fit the one that the engine was started with.
        """
        assert config.growth.node_budget < self.store.token.shape[1]
        self._policy = make_policy(config, self._table)
        # Policies that weigh no costs order candidates as published, by what the draft says.
        self.accept = self.acceptance.predict if needs_costs(config) else _as_drafted
        self.config, self.limits = config, config.growth

    @property
    def policy(self) -> BudgetPolicy:
        assert self._policy is not None, "use_costs() comes before the first real step"
        return self._policy

    @property
    def ready(self) -> bool:
        """Whether a policy is in place; only warm-up steps run before."""
        return self._policy is not None

    def add_request(self, slot: int, data: NewRequestData) -> None:
        """Learn what a request that was given `slot` allows."""
        params = data.sampling_params
        self.chain_only[slot] = params is not None and (
            params.structured_outputs is not None or params.thinking_token_budget is not None
        )

    def begin_step(self, input_batch: InputBatch) -> StepPlan:
        """The plan of the step that is about to run."""
        timing = self.overhead.step_begins(time.perf_counter())
        if timing is not None:
            self.stats.record_time(*timing)
        return StepPlan.make(input_batch, self.store)

    def observe(self, plan: StepPlan) -> None:
        """Learn from a walk: which children of accepted nodes were accepted."""
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

    def load(self, plan: StepPlan, emitting: np.ndarray) -> StepLoad:
        """What the next target step carries besides draft nodes, as far as this worker can know.

        Args:
            plan: the step that just ran.
            emitting: [num_reqs] bool, requests that will decode in the next step.
        """
        batch = plan.input_batch
        computed = batch.num_computed_tokens_np + batch.num_scheduled_tokens
        unfilled = np.maximum(batch.prefill_len_np - computed, 0)
        context = plan.root_pos[emitting]
        return StepLoad(
            num_requests=int(np.count_nonzero(emitting)),
            num_prefill_tokens=min(int(unfilled.sum()), self.max_prefill_tokens),
            context_tokens=int(context.sum()),
        )

    def end_step(self, slots: np.ndarray, trees: TreeBatch, allocation: Allocation | None) -> None:
        """Keep the trees grown for `slots` [num_reqs] and what was expected of them."""
        self.store.put(slots, trees)
        self.stats.record_decision(trees)
        self.overhead.expect(allocation.choice.predicted_ms if allocation is not None else 0.0)


def _as_drafted(draft_prob: np.ndarray, depth: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """An uncalibrated acceptance probability: the draft's own."""
    return draft_prob
