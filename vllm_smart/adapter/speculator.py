"""vLLM's own draft-model speculators, growing trees where they would draft chains.

Loading, the draft prefill and the drafter's layers are vLLM's; what follows the first candidates
is ours: level by level, each level one forward over the frontier of all requests, as long as the
policy says that the next one pays.
"""

from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.eagle.speculator import EagleSpeculator
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.draft_tokens import NO_TOKEN
from vllm_smart.adapter.level import DraftSlots, LevelRows, first_choices
from vllm_smart.adapter.model_state import TreeModelState
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.adapter.step_plan import StepPlan
from vllm_smart.adapter.tree_store import roots
from vllm_smart.config import SmartConfig
from vllm_smart.proposer import CandidatePool
from vllm_smart.scheduler import StepLoad
from vllm_smart.tree import TreeBatch


class TreeGrowth(DraftModelSpeculator):
    """The part that all drafters share. Subclasses say how one forward of their model runs."""

    # Tokens of a request in the drafter's KV cache beyond those in the target's.
    num_extra_prefix_tokens = 0

    def start(self, config: SmartConfig, req_states: RequestState) -> None:
        """Set up after construction; vLLM's constructors take no more arguments."""
        self.runtime = TreeRuntime(self.vllm_config, config)
        self.req_states = req_states
        # The latest forward's candidates, [num_rows, children] each: token, draft probability.
        self._candidates: tuple[np.ndarray, np.ndarray] | None = None

    def set_attn(self, model_state: Any, *args: Any, **kwargs: Any) -> None:
        super().set_attn(model_state, *args, **kwargs)
        assert isinstance(model_state, TreeModelState)
        model_state.bind(self.runtime, self.draft_attn_layer_names)

    def _configure_decode_metadata_update(self) -> None:
        # Fused chain decoding would bypass our levels.
        self.supports_decode_metadata_update = False

    def _multi_step_decode(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's chain loop; `propose` grows the tree after the prefill instead."""

    def sample_draft(
        self,
        hidden_states: torch.Tensor,
        sample_src_positions: torch.Tensor,
        idx_mapping: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Stash the top candidates of each row; called by vLLM's draft prefill."""
        logits = self.compute_draft_logits(hidden_states, 0)
        self._candidates = self.top_candidates(logits, idx_mapping)
        return torch.from_numpy(self._candidates[0][:, 0]).to(self.device)

    def top_candidates(
        self, logits: torch.Tensor, slots: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `children` likeliest tokens of each row and their probabilities.

        Args:
            logits: [num_rows, vocab_size].
            slots: [num_rows] request-state slots; their temperatures shape the probabilities,
                and greedy requests' are taken at temperature 1.

        Returns:
            tokens [num_rows, children] int64 and probabilities float32, best first.
        """
        temperature = self.temperature[slots.clamp(min=0)].unsqueeze(1)
        logits = logits.float() / torch.where(temperature > 0, temperature, 1.0)
        top, tokens = logits.topk(max(1, self.runtime.limits.children), dim=-1)
        probs = (top - logits.logsumexp(-1, keepdim=True)).exp()
        return tokens.cpu().numpy(), probs.cpu().numpy()

    @torch.inference_mode()
    def propose(
        self,
        input_batch: InputBatch,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, torch.Tensor],
        last_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        *args: Any,
        dummy_run: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Grow a tree for every request that will decode next.

        Returns:
            [num_reqs, num_speculative_tokens] int64, each tree's tokens best-first, NO_TOKEN
            beyond its nodes.
        """
        runtime = self.runtime
        # Warm-up runs before there is a KV cache, and so a model state, are dummies too.
        plan = None if dummy_run else self.model_state.plan_of(input_batch)
        drafts = self.draft_tokens[: input_batch.num_reqs]
        if plan is not None:
            runtime.observe(plan)
            if runtime.limits.node_budget == 0:
                drafts.fill_(NO_TOKEN)
                runtime.end_step(input_batch.idx_mapping_np, roots(input_batch.num_reqs), None)
                return drafts
            plan.put_accepted_first(
                input_batch.input_ids, last_hidden_states, *(aux_hidden_states or ())
            )
        super().propose(
            input_batch,
            attn_metadata,
            slot_mappings,
            last_hidden_states,
            aux_hidden_states,
            num_sampled,
            num_rejected,
            *args,
            dummy_run=dummy_run,
            **kwargs,
        )
        if plan is None or not runtime.ready:
            return drafts
        trees = self._grow(plan, num_sampled.cpu().numpy(), num_rejected.cpu().numpy())
        drafts.fill_(NO_TOKEN)
        width = trees.token.shape[1] - 1
        tokens = np.where(trees.is_node(), trees.token, NO_TOKEN)[:, 1:]
        drafts[:, :width] = torch.from_numpy(tokens).to(self.device)
        return drafts

    def _grow(self, plan: StepPlan, num_sampled: np.ndarray, num_rejected: np.ndarray) -> TreeBatch:
        """Trees for all requests of the batch; a root alone where none is worth it."""
        runtime, batch = self.runtime, plan.input_batch
        slots = batch.idx_mapping_np
        computed = batch.num_computed_tokens_np + batch.num_scheduled_tokens - num_rejected
        useful_depth = self._useful_depth(slots, computed)
        emitting = num_sampled > 0
        load = runtime.load(plan, emitting)

        # What vLLM's draft prefill has found to follow each root.
        assert self._candidates is not None
        token, prob = self._candidates
        pool = CandidatePool(batch.num_reqs, runtime.limits, runtime.accept)
        rows = np.flatnonzero(emitting & (useful_depth > 0))
        prob = first_choices(prob[rows], runtime.chain_only[slots[rows]])
        pool.add_children(rows, np.zeros_like(rows), token[rows], prob)

        prefix_len = computed + self.num_extra_prefix_tokens
        capacity = np.minimum(self.num_speculative_steps - 1, self.max_model_len - prefix_len)
        draft_slots = DraftSlots(prefix_len, np.maximum(capacity, 0), pool.path_prob.shape[1])
        spent_ms = self._grow_levels(pool, draft_slots, slots, useful_depth, load)
        allocation = runtime.policy.choose(pool, load, spent_ms)
        trees = pool.select(allocation.num_draft_nodes)
        runtime.end_step(slots, trees, allocation)
        return trees

    def _grow_levels(
        self,
        pool: CandidatePool,
        draft_slots: DraftSlots,
        slots: np.ndarray,
        useful_depth: np.ndarray,
        load: StepLoad,
    ) -> float:
        """Draft further levels into `pool` while they are worth their forward.

        Args:
            slots: [num_reqs] request-state slots.
            useful_depth: [num_reqs] depth beyond which nodes are wasted.
            load: what the next target step carries.

        Returns:
            Milliseconds spent, by the cost table, and the overhead of every step.
        """
        runtime, limits = self.runtime, self.runtime.limits
        # One level's rows of all requests must fit the drafter's input buffers.
        width = min(limits.width, self.max_num_tokens // len(slots))
        spent_ms = runtime.overhead.ms
        for depth in range(1, limits.depth):
            frontier = pool.frontier(np.minimum(width, draft_slots.free()), active=useful_depth > depth)
            if not len(frontier.req):
                break
            worth_it, level_ms = runtime.policy.wants_level(
                pool, frontier, runtime.acceptance.mean_by_rank(depth + 1), load, spent_ms
            )
            if not worth_it:
                break
            spent_ms += level_ms
            logits = self._run_level(draft_slots.take(pool, frontier))
            row_slots = slots[frontier.req]
            token, prob = self.top_candidates(logits, torch.from_numpy(row_slots).to(self.device))
            prob = first_choices(prob, runtime.chain_only[row_slots])
            pool.add_children(frontier.req, frontier.node, token, prob)
        return spent_ms

    def _useful_depth(self, slots: np.ndarray, num_computed: np.ndarray) -> np.ndarray:
        """[num_reqs] tokens that the next step may emit before each request ends, bonus excluded.

        Deeper nodes are wasted, and so is any draft for a request that has ended.
        """
        most = np.minimum(self.req_states.max_seq_len[slots], self.max_model_len)
        return most - (num_computed + 1) - 1

    def _run_level(self, level: LevelRows) -> torch.Tensor:
        """Run the drafter on a level's rows: logits [num_rows, vocab_size]."""
        num_rows = len(level.token)
        rows = level.attention
        slot_mappings = self.block_tables.compute_slot_mappings(
            self.idx_mapping[: len(rows.seq_lens)],
            torch.from_numpy(rows.query_start_loc).to(self.device),
            torch.from_numpy(level.slot_position).to(self.device),
            num_rows,
        )
        metadata: dict[str, Any] = {}
        for groups in self.attn_groups:
            for group in groups:
                table = self.block_tables.input_block_tables[group.kv_cache_group_id]
                tree = group.get_metadata_builder(0).tree_metadata(rows, table)
                metadata.update(dict.fromkeys(group.layer_names, tree))
        by_layer = build_slot_mappings_by_layer(slot_mappings, self.kv_cache_config)
        self.input_buffers.input_ids[:num_rows] = torch.from_numpy(level.token)
        self.input_buffers.positions[:num_rows] = torch.from_numpy(level.position)
        return self.forward_level(num_rows, level.source, metadata, by_layer)

    def forward_level(
        self,
        num_rows: int,
        source: np.ndarray,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        """One forward over the first `num_rows` of the input buffers: logits of each row.

        Args:
            source: [num_rows] row of each row's parent in the forward before.
        """
        raise NotImplementedError


class TreeEagleSpeculator(TreeGrowth, EagleSpeculator):
    """EAGLE and EAGLE-3 heads: each row also takes the hidden state of its parent's row."""

    def forward_level(
        self,
        num_rows: int,
        source: np.ndarray,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        # Gathered before it is written: a parent's row may lie among the rows to fill.
        parents = self.hidden_states[torch.from_numpy(source).to(self.device)]
        self.hidden_states[:num_rows] = parents
        last_hidden_states, hidden_states = self._run_model(num_rows, metadata, slot_mappings, None)
        self.hidden_states[:num_rows] = hidden_states[:num_rows]
        return self.compute_draft_logits(last_hidden_states[:num_rows], 0)


class TreeDraftModelSpeculator(TreeGrowth, StandaloneARSpeculator):
    """An independent draft model; its prefill has consumed the bonus token already."""

    num_extra_prefix_tokens = 1

    def forward_level(
        self,
        num_rows: int,
        source: np.ndarray,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        buffers = self.input_buffers
        hidden_states = self._run_model(
            buffers.input_ids[:num_rows], buffers.positions[:num_rows], metadata, slot_mappings, None
        )
        return self.compute_draft_logits(hidden_states[:num_rows], 0)


def make_speculator(
    vllm_config: VllmConfig, config: SmartConfig, device: torch.device, req_states: RequestState
) -> TreeGrowth:
    """The speculator for `config.drafter.method`."""
    by_method = {
        "eagle": TreeEagleSpeculator,
        "eagle3": TreeEagleSpeculator,
        "draft_model": TreeDraftModelSpeculator,
    }
    speculator = by_method[config.drafter.method](vllm_config, device)
    speculator.start(config, req_states)
    return speculator
