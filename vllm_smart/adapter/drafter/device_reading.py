"""Reading on the device: the host says in one transfer what it knows, and waits for nothing.

Rows reach as far as a step may have brought. Which of them stand, which token each takes and whose
hidden states, is known on the device alone.
"""

import numpy as np
import torch

from vllm_smart.adapter.drafter.reading import Reading
from vllm_smart.arrays import Mailbox, to_device
from vllm_smart.growth.drafting_step import DraftingStep
from vllm_smart.kernels.read_rows import ReadRows, RowsToRead
from vllm_smart.proposer.backlog import UnreadRows
from vllm_smart.seams.host import runs_on_triton
from vllm_smart.step import StepPlan

if runs_on_triton():
    from vllm_smart.kernels.read_rows.gpu import gather_rows, place_reads


class DeviceReading(Reading):
    """Reads for requests of which the host does not know yet how far they have come."""

    _mailbox: Mailbox | None = None

    def read_ahead(
        self,
        step: DraftingStep,
        unread: UnreadRows,
        hidden_states: list[torch.Tensor],
        known_end: torch.Tensor,
        to_logits: torch.Tensor,
        feedback: torch.Tensor,
    ) -> None:
        """Run the drafter over what it has not read of the requests that draft.

        Args:
            step: whose result is the most that it may bring.
            unread: of that result.
            hidden_states: the target's, [num_tokens, hidden] each.
            known_end: [num_drafting] int64 position after the last one that stands.
            to_logits: [num_drafting, hidden], written: what logits of each request's next token are
                computed from.
            feedback: [num_drafting, hidden], written: what children of the roots take.
        """
        if self.marks is not None:
            start = np.minimum(step.result.start[step.drafting], unread.first)
            self.marks.touch(step.result.slots, step.drafting, start, unread.end)
        for first, part in unread.parts(self.host.max_num_tokens):
            last = first + len(part.first)
            rows, out = self._read_part_ahead(
                step, step.drafting[first:last], part, hidden_states, known_end[first:last]
            )
            for of_requests, values in zip((to_logits, feedback), out, strict=True):
                of_part = values[rows.last_row]
                if part is not unread:
                    # Of a request that is cut, the last part counts in which something stands.
                    stands = rows.stands.bool().unsqueeze(1)
                    of_part = torch.where(stands, of_part, of_requests[first:last])
                of_requests[first:last] = of_part
        if part is not unread:
            self.drafter.use_requests(step.slots, self.backlog.window_start[step.slots])

    def target_rows(self, plan: StepPlan, req: np.ndarray, position: np.ndarray) -> torch.Tensor:
        """[n] rows of the target's step that have computed positions [n] of requests [n].

        Beyond a path's end the root's, whose hidden states nobody reads there.
        """
        if plan.walk is None or plan.walk.is_on_host:
            return super().target_rows(plan, req, position)
        numbers = np.stack((req, plan.root_row[req], position - plan.root_pos[req]))
        req_, root_row, offset = to_device(numbers.astype(np.int64), self.host.device)
        node = plan.walk.path[req_, offset.clamp(min=0)].clamp(min=0)
        return root_row + torch.where(offset > 0, node, offset)

    def _read_part_ahead(
        self,
        step: DraftingStep,
        req: np.ndarray,
        unread: UnreadRows,
        hidden_states: list[torch.Tensor],
        known_end: torch.Tensor,
    ) -> tuple[ReadRows, tuple[torch.Tensor, torch.Tensor]]:
        """One forward over `unread` of requests `req`: where its rows lie, and what they bring."""
        plan, num_reqs, num_rows = step.plan, len(req), len(unread.req)
        slots = step.result.slots[req]
        window_start = self.backlog.window_start[slots]
        numbers = (
            req,
            slots,
            unread.row_start[:-1],
            unread.end - unread.first,
            unread.first,
            step.result.start[req],
            plan.root_row[req],
            plan.root_pos[req],
            window_start,
        )
        (sent,) = self._room_to_send().send(np.stack(numbers).astype(np.int64))
        buffers = self.host.input_buffers
        rows = ReadRows(
            token=buffers.input_ids,
            position=buffers.positions,
            source=known_end.new_empty(num_rows),
            slot=self.host.idx_mapping[:num_reqs],
            query_start=buffers.query_start_loc[: num_reqs + 1],
            seq_lens=buffers.seq_lens[:num_reqs],
            last_row=known_end.new_empty(num_reqs),
            stands=known_end.new_empty(num_reqs, dtype=torch.int32),
        )
        place_reads(
            RowsToRead(*sent),
            known_end,
            plan.walk.path if plan.walk is not None else None,
            self.req_states.all_token_ids.gpu,
            self.host.token_shift,
            self.backlog.capacity,
            rows,
        )
        self.drafter.gather_tables(window_start)
        metadata, slot_mappings = self.drafter.metadata(
            unread.row_start, unread.end - window_start, buffers.positions[:num_rows]
        )
        hidden = None
        if self.host.reads_hidden_states:
            has_kept = bool((unread.first < step.result.start[req]).any())
            hidden = self.drafter.to_read(self._gathered(hidden_states, rows.source, has_kept))
        graph = self.host.graph_for(num_rows)
        return rows, self.host.forward_rows(num_rows, hidden, metadata, slot_mappings, graph)

    def _gathered(
        self, hidden_states: list[torch.Tensor], source: torch.Tensor, has_kept: bool
    ) -> torch.Tensor:
        """[num_rows, sum of widths] what the rows take of all tensors, side by side."""
        width = sum(hidden.shape[1] for hidden in hidden_states)
        together = hidden_states[0].new_empty(len(source), width)
        begin = 0
        for hidden in hidden_states:
            columns = slice(begin, begin + hidden.shape[1])
            kept = self.backlog.hidden[:, columns] if has_kept else None
            gather_rows(hidden, kept, source, together[:, columns])
            begin = columns.stop
        return together

    def _room_to_send(self) -> Mailbox:
        if self._mailbox is None:
            most = np.zeros((RowsToRead.num_fields(), self.host.max_num_reqs), np.int64)
            self._mailbox = Mailbox(Mailbox.size_of(most), self.host.device)
        return self._mailbox
