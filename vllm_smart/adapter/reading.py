"""The drafter's pass over tokens that it has not read yet, and keeping them while it does not run.

vLLM's own draft prefill runs over all rows of the target's step, rejected ones included, at every
step. Here the drafter reads each token once, when it is needed.
"""

import numpy as np
import torch
from vllm.v1.worker.gpu.states import RequestState

from vllm_smart.adapter.arrays import copy_to, to_device
from vllm_smart.adapter.backlog import LEAST_KEPT, Backlog, UnreadRows
from vllm_smart.adapter.block_marks import BlockMarks
from vllm_smart.adapter.drafter_forward import DrafterForward
from vllm_smart.adapter.step_plan import StepPlan, StepResult


class DrafterReading(DrafterForward):
    """What reading needs of any drafter."""

    req_states: RequestState
    # [num_rows, hidden] what the latest forward hands to its rows' children.
    feedback: torch.Tensor | None = None
    marks: BlockMarks | None = None  # where requests may find the blocks of others
    _reserved: torch.Tensor | None = None  # for hidden states that are not read at once

    def reserve(self, hidden_states: list[torch.Tensor]) -> None:
        """Take the memory for what the drafter does not read at once, before the KV cache takes all.

        Args:
            hidden_states: the target's, of vLLM's profiling run.
        """
        if self._reserved is None and self.reads_hidden_states:
            rows = self.max_num_reqs * (LEAST_KEPT + self.vllm_config.cache_config.block_size)
            width = sum(hidden.shape[1] for hidden in hidden_states)
            self._reserved = hidden_states[0].new_empty(rows, width)

    def start_reading(self) -> None:
        """Set up once the KV cache is known; nothing is read yet."""
        sizes = self.block_tables.block_sizes
        # Windows start at multiples of the largest block size, which the others divide.
        self.backlog_group = max(self.draft_groups(), key=lambda group: sizes[group])
        self.backlog = Backlog(
            self.max_num_reqs,
            sizes[self.backlog_group],
            self.kv_cache_config.num_blocks,
            self._reserved,
        )
        self.marks = None
        if self.vllm_config.cache_config.enable_prefix_caching:
            of_requests = self.block_tables.block_tables[self.backlog_group].gpu.shape
            self.marks = BlockMarks(self.backlog, *of_requests)

    def readable_end(self, result: StepResult) -> np.ndarray:
        """[num_reqs] position after the last token that the drafter could read."""
        # A drafter that needs no hidden states can read the bonus token, too.
        end = result.end + result.emits if self.token_shift == 0 else result.end
        return np.minimum(end, self.max_model_len)

    def num_unread(self, result: StepResult) -> int:
        """Tokens that the drafter would have to read before it drafts for all requests."""
        read_to = self.backlog.read_to[result.slots]
        return sum(self.readable_end(result).tolist()) - sum(read_to.tolist())

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
            if self.reads_hidden_states:
                self.backlog.keep(slots, start, hidden_states)
            if self.marks is not None:
                news = self.backlog.makes_unread(slots, start, end)
                if len(news):
                    self.marks.touch(result, news, start[news], end[news])
            return
        rest = np.ones(num_reqs, bool)
        rest[drafting] = False
        req = np.flatnonzero(rest)
        if not len(req):
            return
        start, end = result.start[req], result.end[req]
        if self.reads_hidden_states:
            count = np.minimum(end - start, self.backlog.capacity)
            row_end = np.cumsum(count)
            position = np.arange(row_end[-1]) + np.repeat(end - row_end, count)
            req = np.repeat(req, count)
            hidden = side_by_side(hidden_states, self.target_rows(plan, req, position))
            self.backlog.keep(result.slots[req], position, [hidden])
        if self.marks is not None:
            self.marks.touch(result, np.flatnonzero(rest), start, end)

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
    ) -> torch.Tensor:
        """Run the drafter over what it has not read of some requests.

        Args:
            drafting: [num_drafting] their batch indices, ascending.
            unread: of `result`.
            hidden_states: the target's, [num_tokens, hidden] each.

        Returns:
            [num_drafting, hidden] what logits of each request's next token are computed from; what
            children take is in `feedback`.
        """
        slots = result.slots[drafting]
        if self.marks is not None:
            start = np.minimum(result.start[drafting], unread.first)
            self.marks.touch(result, drafting, start, unread.end)
        outs: list[torch.Tensor] = []
        for first, part in unread.parts(self.max_num_tokens):
            last = first + len(part.first)
            out = self._read_part(plan, result, drafting[first:last], part, hidden_states)
            if not outs:
                outs = [rows.new_empty(len(slots), rows.shape[1]) for rows in out]
            # Of a request that is cut, the last part counts.
            last_rows = to_device(part.row_start[1:] - 1, self.device)
            for of_requests, rows in zip(outs, out, strict=True):
                of_requests[first:last] = rows[last_rows]
        if last - first < len(slots):
            self.use_requests(slots, self.backlog.window_start[slots])
        to_logits, self.feedback = outs
        return to_logits

    def _read_part(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        unread: UnreadRows,
        hidden_states: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """One forward over `unread`: [num_rows, hidden] outputs."""
        num_rows, slots = len(unread.req), result.slots[drafting]
        window_start = self.backlog.window_start[slots]
        self.use_requests(slots, window_start)
        hidden = None
        if self.reads_hidden_states:
            hidden = self._hidden_of(plan, result, drafting, unread, hidden_states)
        position = to_device(unread.position, self.device)
        query_start, seq_lens = unread.row_start, unread.end - window_start
        copy_to(self.input_buffers.query_start_loc[: len(query_start)], query_start)
        copy_to(self.input_buffers.seq_lens[: len(seq_lens)], seq_lens)
        metadata, slot_mappings = self.causal_metadata(query_start, seq_lens, position)
        token = self.req_states.all_token_ids.gpu[
            to_device(slots[unread.req], self.device), position + self.token_shift
        ]
        self.input_buffers.input_ids[:num_rows] = token
        self.input_buffers.positions[:num_rows] = position
        graph = self.graph_for(num_rows)
        return list(self.forward_rows(num_rows, hidden, metadata, slot_mappings, graph))

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
        rows = side_by_side(hidden_states, self.target_rows(plan, req[is_new], unread.position[is_new]))
        if not is_new.all():
            kept = self.backlog.kept(result.slots[req[~is_new]], unread.position[~is_new])
            together = rows.new_empty(len(req), rows.shape[1])
            together[to_device(np.flatnonzero(is_new), self.device)] = rows
            together[to_device(np.flatnonzero(~is_new), self.device)] = kept
            rows = together
        return self.to_read(rows)

    def target_rows(self, plan: StepPlan, req: np.ndarray, position: np.ndarray) -> torch.Tensor:
        """[n] rows of the target's step that have computed positions [n] of requests [n]."""
        return to_device(plan.rows_of(req, position), self.device)


def side_by_side(tensors: list[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """[len(rows), sum of widths] those rows of all `tensors`, side by side."""
    return torch.cat([tensor[rows] for tensor in tensors], dim=-1)
