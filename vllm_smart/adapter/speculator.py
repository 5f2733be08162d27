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
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.eagle.speculator import EagleSpeculator
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.backlog import Backlog, UnreadRows
from vllm_smart.adapter.draft_tokens import NO_TOKEN
from vllm_smart.adapter.level import DraftSlots, LevelRows, first_choices
from vllm_smart.adapter.model_state import TreeModelState
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.adapter.step_plan import StepPlan, StepResult
from vllm_smart.adapter.tree_store import roots
from vllm_smart.config import SmartConfig
from vllm_smart.proposer import CandidatePool
from vllm_smart.scheduler import Drafting, StepLoad
from vllm_smart.tree import TreeBatch

_PROBED_SHARE = 16  # one request in so many drafts in a probe
_PROBED_NODES = 2  # verified of each at least: what is never tried is never learnt


class TreeGrowth(DraftModelSpeculator):
    """The part that all drafters share. Subclasses say how one forward of their model runs."""

    # Whether the drafter needs the target's hidden states, which must be kept until it reads.
    reads_hidden_states = True
    # The drafter's row at position p takes the token at p + token_shift.
    token_shift = 1

    def start(self, config: SmartConfig, req_states: RequestState) -> None:
        """Set up after construction; vLLM's constructors take no more arguments."""
        self.runtime = TreeRuntime(self.vllm_config, config)
        self.req_states = req_states
        # [num_rows, hidden] what the latest forward hands to its rows' children.
        self._feedback: torch.Tensor | None = None
        self._num_probes = 0

    def set_attn(self, model_state: Any, *args: Any, **kwargs: Any) -> None:
        super().set_attn(model_state, *args, **kwargs)
        assert isinstance(model_state, TreeModelState)
        model_state.bind(self.runtime, self.draft_attn_layer_names)
        sizes = self.block_tables.block_sizes
        self._draft_groups = sorted(
            {g.kv_cache_group_id for groups in self.attn_groups for g in groups}
        )
        # Windows start at multiples of the largest block size, which the others divide.
        group = max(self._draft_groups, key=lambda g: sizes[g])
        num_blocks = self.kv_cache_config.num_blocks
        backlog = Backlog(self.max_num_reqs, sizes[group], num_blocks)
        self.runtime.keep_backlog(backlog, group)
        self._marks_blocks = bool(self.vllm_config.cache_config.enable_prefix_caching)
        self._backlog, self._backlog_group = backlog, group

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
        runtime.observe(plan)
        self.temperature.copy_(temperature)
        drafts = self.draft_tokens[: input_batch.num_reqs]
        drafts.fill_(NO_TOKEN)
        result = StepResult.of(plan, num_sampled.cpu().numpy(), num_rejected.cpu().numpy())
        load = runtime.load(plan, result)
        known = np.minimum(
            result.end + (result.emits if self.token_shift == 0 else 0), self.max_model_len
        )
        drafting = self._drafting(result, known, load)
        hidden_states = aux_hidden_states or [last_hidden_states]
        self._keep_unread(plan, result, drafting, hidden_states)
        trees = roots(0)
        if len(drafting):
            trees = self._grow(plan, result, known, drafting, hidden_states, load)
            tokens = np.where(trees.is_node(), trees.token, NO_TOKEN)[:, 1:]
            drafts[torch.from_numpy(drafting), : tokens.shape[1]] = torch.from_numpy(tokens)
        runtime.end_step(result.slots[drafting], trees)
        return drafts

    def _drafting(self, result: StepResult, known: np.ndarray, load: StepLoad) -> np.ndarray:
        """[num_drafting] batch indices of the requests that the drafter runs for, ascending.

        Args:
            known: [num_reqs] position after the last token that the drafter could read.
        """
        num_unread = known - self._backlog.read_to[result.slots]
        decision = self.runtime.who_drafts(load, int(num_unread.sum()))
        if decision is Drafting.ALL:
            return np.flatnonzero(num_unread > 0)
        if decision is Drafting.NONE:
            return np.zeros(0, np.int64)
        able = np.flatnonzero((num_unread > 0) & result.emits)
        count = min(len(able), max(1, len(able) // _PROBED_SHARE))
        start = self._num_probes * count
        self._num_probes += 1
        return np.sort(able[(start + np.arange(count)) % max(len(able), 1)])

    def _keep_unread(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        hidden_states: list[torch.Tensor],
    ) -> None:
        """Keep for later what requests that do not draft now have computed in this step."""
        rest = np.ones(len(result.slots), bool)
        rest[drafting] = False
        req = np.flatnonzero(rest)
        if not len(req):
            return
        backlog, slots, end = self._backlog, result.slots[req], result.end[req]
        if self.reads_hidden_states:
            count = np.minimum(end - result.start[req], backlog.capacity)
            row_end = np.cumsum(count)
            position = np.arange(row_end[-1]) + np.repeat(end - row_end, count)
            req = np.repeat(req, count)
            hidden = _rows(hidden_states, plan.rows_of(req, position))
            backlog.keep(result.slots[req], position, hidden)
        if self._marks_blocks:
            backlog.mark_blocks(slots, self._blocks(slots), result.start[rest], end)

    def _grow(
        self,
        plan: StepPlan,
        result: StepResult,
        known: np.ndarray,
        drafting: np.ndarray,
        hidden_states: list[torch.Tensor],
        load: StepLoad,
    ) -> TreeBatch:
        """Trees of the `drafting` requests; a root alone where nothing is worth verifying."""
        runtime = self.runtime
        slots, end, known = result.slots[drafting], result.end[drafting], known[drafting]
        useful_depth = self._useful_depth(slots, end)
        grows = np.flatnonzero(result.emits[drafting] & (useful_depth > 0))
        unread = self._backlog.unread(slots, result.start[drafting], known)
        if self._marks_blocks:
            start = np.minimum(result.start[drafting], unread.first)
            self._backlog.mark_blocks(slots, self._blocks(slots), start, known)

        token, prob = self._read(plan, result, drafting, unread, grows, hidden_states)
        pool = CandidatePool(len(slots), runtime.limits, runtime.accept)
        prob = first_choices(prob, runtime.chain_only[slots[grows]])
        pool.add_children(grows, np.zeros_like(grows), token, prob)

        capacity = np.minimum(self.num_speculative_steps - 1, self.max_model_len - known)
        draft_slots = DraftSlots(
            known, np.maximum(capacity, 0), pool.path_prob.shape[1], self._backlog.window_start[slots]
        )
        level_rows = [len(unread.req)]
        overhead_ms = runtime.overhead.of_trees(load.num_requests)
        spent_ms = overhead_ms + runtime.read_ms(len(unread.req), len(grows))
        spent_ms = self._grow_levels(pool, draft_slots, slots, useful_depth, load, spent_ms, level_rows)
        allocation = runtime.policy.choose(pool, load, spent_ms)
        num_draft_nodes = allocation.num_draft_nodes
        if len(drafting) < len(result.slots):
            num_draft_nodes = np.maximum(num_draft_nodes, _PROBED_NODES)
        trees = pool.select(num_draft_nodes)
        runtime.drafted(pool, grows, level_rows, spent_ms - overhead_ms)
        return trees

    def _read(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        unread: UnreadRows,
        grows: np.ndarray,
        hidden_states: list[torch.Tensor],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the drafter over what it has not read.

        Args:
            drafting: [num_drafting] batch indices.
            unread: their rows.
            grows: [num_growing] which of them need candidates, as indices into `drafting`.
            hidden_states: the target's, [num_tokens, hidden] each.

        Returns:
            Candidates of `grows`, as from `top_candidates`.
        """
        slots = result.slots[drafting]
        outs: list[torch.Tensor] = []
        for first, part in unread.parts(self.max_num_tokens):
            last = first + len(part.first)
            num_rows = len(part.req)
            self._use_requests(slots[first:last])
            hidden = None
            if self.reads_hidden_states:
                hidden = self._hidden_of(plan, result, drafting[first:last], part, hidden_states)
            metadata, slot_mappings = self._causal_metadata(slots[first:last], part)
            token = self.req_states.all_token_ids.gpu[
                torch.from_numpy(slots[first:last][part.req]),
                torch.from_numpy(part.position + self.token_shift),
            ]
            self.input_buffers.input_ids[:num_rows] = token
            self.input_buffers.positions[:num_rows] = torch.from_numpy(part.position)
            out = self.forward_rows(num_rows, hidden, metadata, slot_mappings)
            ends = torch.from_numpy(part.row_start[1:] - 1)
            if not outs:
                outs = [rows.new_empty(len(slots), rows.shape[1]) for rows in out]
            # Of a request that is cut, the last part counts.
            for all_ends, rows in zip(outs, out, strict=True):
                all_ends[first:last] = rows[ends]
        if len(part.first) < len(slots):
            self._use_requests(slots)
        to_logits, self._feedback = outs
        if not len(grows):
            return np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32)
        logits = self.compute_draft_logits(to_logits[torch.from_numpy(grows)], 0)
        return self.top_candidates(logits, torch.from_numpy(slots[grows]))

    def _hidden_of(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        unread: UnreadRows,
        hidden_states: list[torch.Tensor],
    ) -> torch.Tensor:
        """[num_rows, hidden] what the drafter takes from the target: of this step, or kept."""
        req = drafting[unread.req]
        is_new = unread.position >= result.start[req]
        rows = _rows(hidden_states, plan.rows_of(req[is_new], unread.position[is_new]))
        if not is_new.all():
            kept = self._backlog.kept(result.slots[req[~is_new]], unread.position[~is_new])
            together = rows.new_empty(len(req), rows.shape[1])
            together[torch.from_numpy(is_new)] = rows
            together[torch.from_numpy(~is_new)] = kept
            rows = together
        return self.model.combine_hidden_states(rows) if self.method == "eagle3" else rows

    def _use_requests(self, slots: np.ndarray) -> None:
        """Put the block tables of `slots` first, each from where its request's window starts."""
        num_reqs = len(slots)
        self.idx_mapping[:num_reqs] = torch.from_numpy(slots)
        tables = self.block_tables.gather_block_tables(self.idx_mapping[:num_reqs], num_reqs)
        window_start = self._backlog.window_start[slots]
        for req in np.flatnonzero(window_start):
            for group in self._draft_groups:
                skipped = int(window_start[req]) // self.block_tables.block_sizes[group]
                tables[group][req] = tables[group][req].roll(-skipped)

    def _causal_metadata(
        self, slots: np.ndarray, unread: UnreadRows
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Attention metadata and slot mappings of a pass over `unread`."""
        num_reqs, num_rows = len(slots), len(unread.req)
        seq_lens = unread.end - self._backlog.window_start[slots]
        query_start_loc = unread.row_start.astype(np.int32)
        buffers = self.input_buffers
        buffers.query_start_loc[: num_reqs + 1] = torch.from_numpy(query_start_loc)
        buffers.seq_lens[:num_reqs] = torch.from_numpy(seq_lens)
        slot_mappings = self.block_tables.compute_slot_mappings(
            self.idx_mapping[:num_reqs],
            buffers.query_start_loc[: num_reqs + 1],
            torch.from_numpy(unread.position),
            num_rows,
        )
        self.draft_max_seq_len = int(seq_lens.max())
        metadata = self._build_attn_metadata(
            num_reqs=num_reqs,
            batch_desc=BatchExecutionDescriptor(
                cg_mode=CUDAGraphMode.NONE, num_tokens=num_rows, num_reqs=num_reqs
            ),
            query_start_loc_np=query_start_loc,
            seq_lens_cpu_upper_bound=torch.from_numpy(seq_lens.astype(np.int32)),
            step=0,
            slot_mappings=slot_mappings,
        )
        return metadata, build_slot_mappings_by_layer(slot_mappings, self.kv_cache_config)

    def _blocks(self, slots: np.ndarray) -> np.ndarray:
        """[num_reqs, max_num_blocks] ids of the drafter's blocks."""
        return self.block_tables.block_tables[self._backlog_group].gpu.numpy()[slots]

    def _grow_levels(
        self,
        pool: CandidatePool,
        draft_slots: DraftSlots,
        slots: np.ndarray,
        useful_depth: np.ndarray,
        load: StepLoad,
        spent_ms: float,
        level_rows: list[int],
    ) -> float:
        """Draft further levels into `pool` while they are worth their forward.

        Args:
            slots: [num_reqs] request-state slots.
            useful_depth: [num_reqs] depth beyond which nodes are wasted.
            load: what the next target step carries.
            spent_ms: predicted time of what was run already, and of every step's overhead.
            level_rows: takes the number of rows of each level.

        Returns:
            spent_ms, with that of the levels.
        """
        runtime, limits = self.runtime, self.runtime.limits
        # One level's rows of all requests must fit the drafter's input buffers.
        width = min(limits.width, self.max_num_tokens // len(slots))
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
            level_rows.append(len(frontier.req))
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
        assert self._feedback is not None
        hidden = self._feedback[torch.from_numpy(source).to(self.device)]
        out, self._feedback = self.forward_rows(num_rows, hidden, metadata, slot_mappings)
        return self.compute_draft_logits(out, 0)

    def forward_rows(
        self,
        num_rows: int,
        hidden: torch.Tensor | None,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the drafter over the first `num_rows` of the input buffers.

        Args:
            hidden: [num_rows, hidden] what each row takes from the target or its parent, for
                drafters that read hidden states; None leaves what the buffer holds.

        Returns:
            [num_rows, hidden] each: what logits are computed from, and what children take.
        """
        raise NotImplementedError


def _rows(tensors: list[torch.Tensor], rows: np.ndarray) -> torch.Tensor:
    """[len(rows), sum of widths] those rows of all `tensors`, side by side."""
    index = torch.from_numpy(rows)
    return torch.cat([tensor[index] for tensor in tensors], dim=-1)


class TreeEagleSpeculator(TreeGrowth, EagleSpeculator):
    """EAGLE and EAGLE-3 heads: each row also takes the hidden state of its parent's row."""

    def forward_rows(
        self,
        num_rows: int,
        hidden: torch.Tensor | None,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if hidden is not None:
            self.hidden_states[:num_rows] = hidden
        out, to_children = self._run_model(num_rows, metadata, slot_mappings, None)
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
