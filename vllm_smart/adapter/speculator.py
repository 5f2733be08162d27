"""vLLM's own draft-model speculators, growing trees where they would draft chains.

Loading and the drafter's layers are vLLM's; what is run is ours. Where the policy says that
drafting pays, the drafter first reads the tokens it has not seen - the accepted path, or more
after steps without drafting - and then grows level by level, each level one forward over the
frontier of all requests, as long as the next one pays.
"""

from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.eagle.speculator import EagleSpeculator
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.arrays import copy_to, to_device
from vllm_smart.adapter.cpu import candidates as cpu_candidates
from vllm_smart.adapter.draft_tokens import NO_TOKEN
from vllm_smart.adapter.growth_log import GrowthLog
from vllm_smart.adapter.level import DraftSlots, LevelRows, first_choices
from vllm_smart.adapter.limits import check_attention
from vllm_smart.adapter.model_state import TreeModelState
from vllm_smart.adapter.reading import DrafterReading
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.adapter.step_plan import StepPlan, StepResult
from vllm_smart.config import SmartConfig
from vllm_smart.proposer import CandidatePool
from vllm_smart.scheduler import Drafting, StepLoad

_PROBED_SHARE = 16  # one request in so many drafts in a probe
_PROBED_NODES = 2  # verified of each at least: what is never tried is never learnt


class TreeGrowth(DrafterReading):
    """The part that all drafters share. Subclasses say how one forward of their model runs."""

    def start(self, config: SmartConfig, req_states: RequestState) -> None:
        """Set up after construction; vLLM's constructors take no more arguments."""
        self.runtime = TreeRuntime(self.vllm_config, config)
        self.req_states = req_states
        self._num_probes = 0

    def set_attn(self, model_state: Any, *args: Any, **kwargs: Any) -> None:
        super().set_attn(model_state, *args, **kwargs)
        assert isinstance(model_state, TreeModelState)
        groups = [*self.target_attn_groups, *self.attn_groups]
        check_attention(group.backend for of_kind in groups for group in of_kind)
        model_state.bind(self.runtime, self.draft_attn_layer_names)
        self.runtime.keep_backlog(self.start_reading(), self.backlog_group)

    def _configure_decode_metadata_update(self) -> None:
        # Fused chain decoding would bypass our levels.
        self.supports_decode_metadata_update = False

    def _multi_step_decode(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's chain loop, in warm-up runs; real steps grow trees."""

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
        if logits.device.type == "cpu" and logits.numel() <= cpu_candidates.MOST_LOGITS:
            num = max(1, self.runtime.limits.children)
            return cpu_candidates.top_candidates(logits, slots, self.temperature, num)
        temperature = self.temperature[slots].unsqueeze(1)
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
        last_sampled: torch.Tensor,
        next_prefill_tokens: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        dummy_run: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Grow a tree for every request that will decode next, or for none.

        Returns:
            [num_reqs, num_speculative_tokens] int64, each tree's tokens best-first, NO_TOKEN
            beyond its nodes.
        """
        runtime = self.runtime
        # Warm-up runs before there is a KV cache, and so a model state, are dummies too.
        plan = None if dummy_run else self.model_state.plan_of(input_batch)
        if plan is None:
            return super().propose(
                input_batch,
                attn_metadata,
                slot_mappings,
                last_hidden_states,
                aux_hidden_states,
                num_sampled,
                num_rejected,
                last_sampled,
                next_prefill_tokens,
                temperature,
                seeds,
                dummy_run=True,
                **kwargs,
            )
        # vLLM's warm-up schedules the largest tree, whatever is grown: its rows need some token.
        no_token = 0 if runtime.is_warming_up else NO_TOKEN
        drafts = self.draft_tokens[: input_batch.num_reqs].fill_(no_token)
        if plan.is_plain:
            result = StepResult.of_plain(plan)
        else:
            result = StepResult.of(plan, num_sampled.cpu().numpy(), num_rejected.cpu().numpy())
        runtime.verified(plan, result, last_sampled)
        load = runtime.load(plan, result)
        decision = runtime.controller.who_drafts(load, self.num_unread(result))
        drafting = self._drafting(decision, result)
        hidden_states = aux_hidden_states or [last_hidden_states]
        self.keep_unread(plan, result, drafting, hidden_states)
        if not len(drafting):
            runtime.rested(plan, result, load)
            return drafts
        self.temperature.copy_(temperature)
        log = self._grow(plan, result, drafting, hidden_states, load, decision)
        runtime.drafted(plan, result, log)
        tokens = np.where(log.trees.is_node(), log.trees.token, no_token)[:, 1:]
        drafts[to_device(drafting, self.device), : tokens.shape[1]] = to_device(tokens, self.device)
        return drafts

    def _drafting(self, decision: Drafting, result: StepResult) -> np.ndarray:
        """[num_drafting] batch indices of the requests that the drafter runs for, ascending."""
        if decision is Drafting.NONE:
            return np.zeros(0, np.int64)
        can_read = self.readable_end(result) > self.backlog.read_to[result.slots]
        if decision is not Drafting.PROBE:
            return np.flatnonzero(can_read)
        able = np.flatnonzero(can_read & result.emits)
        count = min(len(able), max(1, len(able) // _PROBED_SHARE))
        start = self._num_probes * count
        self._num_probes += 1
        return np.sort(able[(start + np.arange(count)) % max(len(able), 1)])

    def _grow(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        hidden_states: list[torch.Tensor],
        load: StepLoad,
        decision: Drafting,
    ) -> GrowthLog:
        """Trees of some requests, of a root alone where nothing is worth verifying.

        Args:
            drafting: [num_drafting] batch indices.
        """
        runtime, slots = self.runtime, result.slots[drafting]
        controller = runtime.controller
        to_logits, num_read = self.read(plan, result, drafting, hidden_states)
        useful_depth = self._useful_depth(slots, result.end[drafting])
        grows = np.flatnonzero(result.emits[drafting] & (useful_depth > 0))
        pool = runtime.new_pool(slots)
        first_level = to_logits[to_device(grows, self.device)]
        self._add_children(pool, grows, np.zeros_like(grows), slots, first_level)

        prefix_end = self.readable_end(result)[drafting]
        log = GrowthLog(
            drafting=decision,
            indices=drafting,
            load=load,
            pool=pool,
            grows=grows,
            useful_depth=useful_depth,
            capacity=np.minimum(self.num_speculative_steps - 1, self.max_model_len - prefix_end),
            num_read=num_read,
            overhead_ms=controller.overhead_ms(load.num_requests, drafts=True),
            read_ms=controller.read_ms(num_read, len(grows)),
            # One level's rows of all requests must fit the drafter's input buffers.
            max_width=self.max_num_tokens // len(slots),
        )
        window_start = self.backlog.window_start[slots]
        draft_slots = DraftSlots(prefix_end, log.capacity, pool.path_prob.shape[1], window_start)
        self._grow_levels(log, draft_slots, slots)
        log.allocation = controller.policy.choose(pool, load, log.spent_ms)
        least_nodes = 0 if decision is Drafting.ALL else _PROBED_NODES
        log.trees = pool.select(np.maximum(log.allocation.num_draft_nodes, least_nodes))
        return log

    def _add_children(
        self,
        pool: CandidatePool,
        req: np.ndarray,
        parent: np.ndarray,
        slots: np.ndarray,
        to_logits: torch.Tensor,
    ) -> None:
        """Add the likeliest tokens after some nodes to `pool`.

        Args:
            req: [num_rows] ascending.
            parent: [num_rows] the nodes, as pool ids.
            slots: [num_reqs] request-state slots.
            to_logits: [num_rows, hidden].
        """
        if not len(req):
            return
        row_slots = slots[req]
        logits = self.compute_draft_logits(to_logits, 0)
        token, prob = self.top_candidates(logits, to_device(row_slots, self.device))
        prob = first_choices(prob, self.runtime.terms.chain_only[row_slots])
        pool.add_children(req, parent, token, prob)
        self.runtime.controller.saw_level(pool.num_levels, pool.parent_mass, pool.child_mass)

    def _grow_levels(self, log: GrowthLog, draft_slots: DraftSlots, slots: np.ndarray) -> None:
        """Draft further levels while they are worth their forward.

        Args:
            slots: [num_reqs] request-state slots.
        """
        controller, pool, limits = self.runtime.controller, log.pool, self.runtime.limits
        width = min(limits.width, log.max_width)
        for depth in range(1, limits.depth):
            growing = log.useful_depth > depth
            frontier = pool.frontier(np.minimum(width, draft_slots.free()), active=growing)
            if not len(frontier.req):
                break
            log.child_acceptance.append(controller.acceptance.mean_by_rank(depth + 1))
            expanded, level_ms = controller.policy.level(
                pool, frontier, log.child_acceptance[-1], log.load, log.spent_ms
            )
            if not expanded.any():
                break
            frontier = frontier.only(expanded)
            log.levels_ms += level_ms
            log.level_rows.append(len(frontier.req))
            to_logits = self._run_level(draft_slots.take(pool, frontier))
            self._add_children(pool, frontier.req, frontier.node, slots, to_logits)

    def _useful_depth(self, slots: np.ndarray, num_computed: np.ndarray) -> np.ndarray:
        """[num_reqs] tokens that the next step may emit before each request ends, bonus excluded.

        Deeper nodes are wasted, and so is any draft for a request that has ended.
        """
        most = np.minimum(self.req_states.max_seq_len[slots], self.max_model_len)
        return most - (num_computed + 1) - 1

    def _run_level(self, level: LevelRows) -> torch.Tensor:
        """Run the drafter on a level's rows: [num_rows, hidden] to compute logits from."""
        num_rows = len(level.token)
        rows = level.attention
        slot_mappings = self.block_tables.compute_slot_mappings(
            self.idx_mapping[: len(rows.seq_lens)],
            to_device(rows.query_start_loc, self.device),
            to_device(level.slot_position, self.device),
            self.graph_for(num_rows).num_tokens,
        )
        metadata: dict[str, Any] = {}
        for groups in self.attn_groups:
            for group in groups:
                table = self.block_tables.input_block_tables[group.kv_cache_group_id]
                tree = group.get_metadata_builder(0).tree_metadata(rows, table)
                metadata.update(dict.fromkeys(group.layer_names, tree))
        by_layer = build_slot_mappings_by_layer(slot_mappings, self.kv_cache_config)
        copy_to(self.input_buffers.input_ids[:num_rows], level.token)
        copy_to(self.input_buffers.positions[:num_rows], level.position)
        assert self.feedback is not None
        hidden = self.feedback[to_device(level.source, self.device)]
        to_logits, self.feedback = self.forward_rows(num_rows, hidden, metadata, by_layer)
        return to_logits


class TreeEagleSpeculator(TreeGrowth, EagleSpeculator):
    """EAGLE and EAGLE-3 heads: each row also takes the hidden state of its parent's row."""

    def graph_for(self, num_rows: int) -> BatchExecutionDescriptor:
        """The piecewise graph that vLLM has captured for draft prefills of this size, or none."""
        assert self.prefill_cudagraph_manager is not None
        return self.prefill_cudagraph_manager.dispatch(
            num_reqs=1, num_tokens=num_rows, uniform_token_count=None, num_active_loras=0
        )

    def forward_rows(
        self,
        num_rows: int,
        hidden: torch.Tensor | None,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if hidden is not None:
            self.hidden_states[:num_rows] = hidden
        graph = self.graph_for(num_rows)
        # Rows of padding attend to nothing and write to no slot.
        out, to_children = self._run_model(
            graph.num_tokens, metadata, slot_mappings, None, graph.cg_mode
        )
        return out[:num_rows], to_children[:num_rows]


class TreeDraftModelSpeculator(TreeGrowth, StandaloneARSpeculator):
    """An independent draft model, which reads the bonus token, too, and tokens alone."""

    reads_hidden_states = False
    token_shift = 0

    def forward_rows(
        self,
        num_rows: int,
        hidden: torch.Tensor | None,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        buffers = self.input_buffers
        out = self._run_model(
            buffers.input_ids[:num_rows], buffers.positions[:num_rows], metadata, slot_mappings, None
        )[:num_rows]
        return out, out


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
