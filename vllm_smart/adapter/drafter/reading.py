"""The drafter's pass over tokens that it has not read yet, and keeping them while it does not run.

vLLM's own draft prefill runs over all rows of the target's step, rejected ones included, at every
step. Here the drafter reads each token once, when it is needed.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    KVCacheSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.drafter.drafter import Drafter
from vllm_smart.arrays import to_device
from vllm_smart.kernels.keep_rows.cpu import gather_rows
from vllm_smart.kernels.tree_attention import LayerRules
from vllm_smart.proposer.backlog import LEAST_KEPT, Backlog, UnreadRows
from vllm_smart.proposer.block_marks import BlockMarks, TouchedBlocks
from vllm_smart.step import StepPlan, StepResult


class DraftReading(Protocol):
    """What a step's drafting asks of how far the drafter has read, wherever it runs."""

    def num_unread(self, result: StepResult) -> int:
        """Tokens that the step would wait for the drafter to read before it drafts for all."""

    @property
    def most_late(self) -> int:
        """Rows of a prompt that are read if it is read a step later."""

    def can_read(self, result: StepResult) -> np.ndarray:
        """[num_reqs] bool: requests that there is something to read of."""

    def keep_unread(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        hidden_states: list[torch.Tensor],
    ) -> None:
        """Keep for later what the step has brought requests that do not draft now.

        Args:
            drafting: [num_drafting] batch indices of those that do.
            hidden_states: the target's, [num_tokens, hidden] each.
        """

    def has_read(self, result: StepResult, drafting: np.ndarray) -> None:
        """Note how far the drafter has read for the requests that have drafted."""


class Reading:
    """What the drafter has read of each request, and its pass over the rest.

    Attributes:
        backlog: how far each request was read, once `start` has been called.
        marks: of blocks that requests may find in the prefix cache; None without one.
    """

    backlog: Backlog

    def __init__(self, drafter: Drafter, req_states: RequestState) -> None:
        """Args:
        drafter: that reads.
        req_states: vLLM's, where the tokens are.
        """
        self.drafter, self.host = drafter, drafter.host
        self.req_states = req_states
        self.marks: BlockMarks | None = None
        self._reserved: torch.Tensor | None = None  # for hidden states that are not read at once

    def reserve(self, hidden_states: list[torch.Tensor]) -> None:
        """Take the memory for what the drafter does not read at once, before the KV cache takes all.

        Args:
            hidden_states: the target's, of vLLM's profiling run.
        """
        if self._reserved is None and self.host.reads_hidden_states:
            rows = self.host.max_num_reqs * (LEAST_KEPT + self.host.vllm_config.cache_config.block_size)
            width = sum(hidden.shape[1] for hidden in hidden_states)
            self._reserved = hidden_states[0].new_empty(rows, width)

    def start(self) -> None:
        """Set up once the KV cache is known; nothing is read yet."""
        groups, sizes = self.drafter.draft_groups(), self.host.block_tables.block_sizes
        of_groups = self.host.kv_cache_config.kv_cache_groups
        forgets = {group: _forgets(of_groups[group].kv_cache_spec) for group in groups}
        # Windows start at multiples of the largest block size, which the others divide. What the prefix
        # cache holds is told by a group that forgets nothing, if there is one.
        self.backlog_group = max(groups, key=lambda group: (sizes[group], forgets[group] is None))
        forgetful = [(rules, sizes[group]) for group, rules in forgets.items() if rules is not None]
        self.backlog = Backlog(
            self.host.max_num_reqs,
            sizes[self.backlog_group],
            self.host.kv_cache_config.num_blocks,
            self._reserved,
            partial(_first_held, forgetful) if forgetful else None,
        )
        self.marks = None
        if self.host.vllm_config.cache_config.enable_prefix_caching:
            of_requests = self.host.block_tables.block_tables[self.backlog_group].gpu.shape
            self.marks = BlockMarks(self.backlog, *of_requests)

    def readable_end(self, result: StepResult) -> np.ndarray:
        """[num_reqs] position after the last token that the drafter could read."""
        # A drafter that needs no hidden states can read the bonus token, too.
        end = result.end + result.emits if self.host.token_shift == 0 else result.end
        return np.minimum(end, self.host.max_model_len)

    def deepest(self, slots: np.ndarray) -> np.ndarray:
        """[num_reqs] levels below the root that the drafter can draft for requests that it has read."""
        return np.full(len(slots), self.host.max_model_len)

    def level_room(self, prefix_end: np.ndarray) -> np.ndarray:
        """[num_reqs] rows of all further levels, which write where drafts will be verified."""
        room: np.ndarray = np.minimum(
            self.host.num_speculative_steps - 1, self.host.max_model_len - prefix_end
        )
        return room

    def can_read(self, result: StepResult) -> np.ndarray:
        """[num_reqs] bool: requests of which the drafter has not read all that it could."""
        can: np.ndarray = self.readable_end(result) > self.backlog.read_to[result.slots]
        return can

    def num_more_rows(self, num_growing: int) -> int:
        """Rows that reading runs beyond the unread ones, for so many requests that get candidates."""
        return 0

    def num_unread(self, result: StepResult) -> int:
        """Tokens that the drafter would have to read before it drafts for all requests."""
        return self.backlog.num_unread(result.slots, result.start, self.readable_end(result))

    @property
    def most_late(self) -> int:
        """Rows of a prompt that can be read a step later."""
        return self.backlog.capacity

    def take_touched(self) -> tuple[TouchedBlocks, ...]:
        """Blocks of the drafter's cache that the present step touches, for `has_read`."""
        return self.marks.take() if self.marks is not None else ()

    def has_read(
        self,
        result: StepResult,
        drafting: np.ndarray,
        touched: tuple[TouchedBlocks, ...] | None = None,
    ) -> None:
        """Note how far the drafter has read, once a step's outcome is known.

        Args:
            result: what the target's part of the step has brought.
            drafting: [num_drafting] batch indices of the requests that it has read for.
            touched: blocks of the drafter's cache; None = of the present step.
        """
        end = result.end
        if len(drafting):
            end = end.copy()
            end[drafting] = self.readable_end(result)[drafting]
            self.backlog.read_to[result.slots[drafting]] = end[drafting]
        if self.marks is not None:
            self.marks.mark(result.slots, end, self.take_touched() if touched is None else touched)

    def keep_unread(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        hidden_states: list[torch.Tensor],
    ) -> None:
        """Keep for later what requests that do not draft now have computed in this step."""
        num_reqs = len(result.slots)
        if not len(drafting) and plan.input_batch.num_tokens == num_reqs:
            # One row of each request, in order, is what most steps without drafting have.
            slots, start, end = result.slots, result.start, result.end
            if self.host.reads_hidden_states:
                self.backlog.keep(slots, start, hidden_states)
            if self.marks is not None:
                news = self.backlog.makes_unread(slots, start, end)
                if len(news):
                    self.marks.touch(slots, news, start[news], end[news])
            return
        rest = np.ones(num_reqs, bool)
        rest[drafting] = False
        req = np.flatnonzero(rest)
        if not len(req):
            return
        start, end = result.start[req], result.end[req]
        if self.host.reads_hidden_states:
            count = np.minimum(end - start, self.backlog.capacity)
            row_end = np.cumsum(count)
            position = np.arange(row_end[-1]) + np.repeat(end - row_end, count)
            req = np.repeat(req, count)
            hidden = side_by_side(hidden_states, self.target_rows(plan, req, position))
            self.backlog.keep(result.slots[req], position, [hidden])
        if self.marks is not None:
            self.marks.touch(result.slots, np.flatnonzero(rest), start, end)

    def unread(self, result: StepResult, drafting: np.ndarray) -> UnreadRows:
        """What the drafter has not read of some requests, at least a token of each.

        Args:
            result: where it is only the most that the step may have brought, rows beyond what stands
                are read, too; they are the last of their request, and the next step's reading
                writes over what they leave in the cache.
            drafting: [num_drafting] their batch indices, ascending.
        """
        end = self.readable_end(result)[drafting]
        return self.backlog.unread(result.slots[drafting], result.start[drafting], end)

    def read(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        unread: UnreadRows,
        hidden_states: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the drafter over what it has not read of some requests.

        Args:
            drafting: [num_drafting] their batch indices, ascending.
            unread: of `result`.
            hidden_states: the target's, [num_tokens, hidden] each.

        Returns:
            [num_drafting, hidden] each: what logits of each request's next token are computed from,
            and what children of its root take.
        """
        slots = result.slots[drafting]
        self.touch(result, drafting, unread)
        outs: list[torch.Tensor] = []
        for first, part in unread.parts(self.host.max_num_tokens):
            last = first + len(part.first)
            out = self._read_part(plan, result, drafting[first:last], part, hidden_states)
            last_rows = to_device(part.row_start[1:] - 1, self.host.device)
            of_part = [rows[last_rows] for rows in out]
            if part is unread:  # all at once, as nearly always
                outs = of_part
                break
            if not outs:
                outs = [rows.new_empty(len(slots), rows.shape[1]) for rows in out]
            # Of a request that is cut, the last part counts.
            for of_requests, rows in zip(outs, of_part, strict=True):
                of_requests[first:last] = rows
        if last - first < len(slots):
            self.drafter.use_requests(slots, self.backlog.window_start[slots])
        to_logits, feedback = outs
        return to_logits, feedback

    def touch(self, result: StepResult, drafting: np.ndarray, unread: UnreadRows) -> None:
        """Mark the blocks of the drafter's cache that reading writes; arguments as for `read`."""
        if self.marks is not None:
            start = np.minimum(result.start[drafting], unread.first)
            self.marks.touch(result.slots, drafting, start, unread.end)

    def _read_part(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        unread: UnreadRows,
        hidden_states: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """One forward over `unread`: [num_rows, hidden] outputs."""
        slots, hidden = result.slots[drafting], None
        if self.host.reads_hidden_states:
            hidden = self.hidden_of(plan, result, drafting, unread, hidden_states)
        token = self.tokens(slots[unread.req], unread.position + self.host.token_shift)
        return list(self.run_rows(slots, unread, token, hidden))

    def tokens(self, slots: np.ndarray, position: np.ndarray) -> torch.Tensor:
        """[n] tokens at positions [n] of the requests in slots [n]."""
        all_tokens: torch.Tensor = self.req_states.all_token_ids.gpu
        if all_tokens.device.type == "cpu":
            return torch.from_numpy(all_tokens.numpy()[slots, position])
        return all_tokens[to_device(slots, all_tokens.device), to_device(position, all_tokens.device)]

    def run_rows(
        self, slots: np.ndarray, rows: UnreadRows, token: torch.Tensor, hidden: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward over rows of some requests; see `TreeSpeculator.forward_rows`.

        Args:
            slots: [num_reqs] request-state slots.
            rows: of these requests, at least one of each.
            token: [num_rows] that each row takes.
            hidden: [num_rows, hidden] likewise, for drafters that read hidden states.
        """
        host, num_rows = self.host, len(rows.req)
        window_start = self.backlog.window_start[slots]
        self.drafter.use_requests(slots, window_start)
        position = to_device(rows.position, host.device)
        host.input_buffers.input_ids[:num_rows] = token
        host.input_buffers.positions[:num_rows] = position
        return self.drafter.run_sequences(rows.row_start, rows.end - window_start, position, hidden)

    def hidden_of(
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
        rows = side_by_side(hidden_states, self.target_rows(plan, req[is_new], unread.position[is_new]))
        if not is_new.all():
            kept = self.backlog.kept(result.slots[req[~is_new]], unread.position[~is_new])
            together = rows.new_empty(len(req), rows.shape[1])
            together[to_device(np.flatnonzero(is_new), self.host.device)] = rows
            together[to_device(np.flatnonzero(~is_new), self.host.device)] = kept
            rows = together
        return self.drafter.to_read(rows)

    def target_rows(self, plan: StepPlan, req: np.ndarray, position: np.ndarray) -> torch.Tensor:
        """[n] rows of the target's step that have computed positions [n] of requests [n]."""
        return to_device(plan.rows_of(req, position), self.host.device)


def side_by_side(tensors: list[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """[len(rows), sum of widths] those rows of all `tensors`, side by side."""
    if rows.device.type == "cpu":
        return gather_rows(tensors, rows.numpy())
    return torch.cat([tensor[rows] for tensor in tensors], dim=-1)


def _forgets(spec: KVCacheSpec) -> LayerRules | None:
    """What layers of a KV cache group forget, for which vLLM takes blocks from them; None: nothing."""
    if isinstance(spec, UniformTypeKVCacheSpecs):  # of layers that differ in their sizes alone
        spec = spec.first_spec
    if isinstance(spec, SlidingWindowSpec):
        return LayerRules(window=spec.sliding_window)
    if isinstance(spec, ChunkedLocalAttentionSpec):
        return LayerRules(chunk=spec.attention_chunk_size)
    return None


def _first_held(forgetful: Sequence[tuple[LayerRules, int]], step_start: np.ndarray) -> np.ndarray:
    """[num_reqs] the first position whose blocks are the request's still, in all layers.

    Args:
        forgetful: what groups of layers forget, and the size of their blocks.
        step_start: [num_reqs] position that the step computes from.
    """
    held = np.zeros_like(step_start)
    for rules, block_size in forgetful:
        first_seen = rules.first_seen(step_start)
        assert first_seen is not None, "a group that forgets"
        held = np.maximum(held, first_seen // block_size * block_size)
    return held
