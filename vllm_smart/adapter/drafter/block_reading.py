"""Reading of a block drafter: keys and values of what is known, then one forward over all blocks."""

import numpy as np
import torch

from vllm_smart.adapter.drafter.block_speculator import TreeBlockSpeculator
from vllm_smart.adapter.drafter.reading import Reading
from vllm_smart.arrays import copy_to, to_device
from vllm_smart.proposer.backlog import UnreadRows
from vllm_smart.step import StepPlan, StepResult

_ANY = 1 << 20  # rows of levels, which are read off the blocks


class BlockReading(Reading):
    """What is known becomes context without a forward; the drafter runs over the blocks after it."""

    host: TreeBlockSpeculator

    def deepest(self, slots: np.ndarray) -> np.ndarray:
        return np.full(len(slots), self.host.block_len)

    def level_room(self, prefix_end: np.ndarray) -> np.ndarray:
        return np.full_like(prefix_end, _ANY)

    def num_more_rows(self, num_growing: int) -> int:
        return num_growing * self.host.num_block_rows

    def num_unread(self, result: StepResult) -> int:
        return super().num_unread(result) + self.num_more_rows(len(result.slots))

    def read(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        unread: UnreadRows,
        hidden_states: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring the context up to the roots, and run the blocks of those that have one; see `Reading`.

        Returns:
            [num_drafting, block_len, hidden] what logits of the tokens after each root are computed
            from, of any value where there is no root; and the same, as children take nothing.
        """
        self.touch(result, drafting, unread)
        for first, part in unread.parts(self.host.max_num_tokens):
            requests = drafting[first : first + len(part.first)]
            self._read_context(plan, result, requests, part, hidden_states)
        blocks = self._run_blocks(result, drafting)
        return blocks, blocks

    def _read_context(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        unread: UnreadRows,
        hidden_states: list[torch.Tensor],
    ) -> None:
        host, slots = self.host, result.slots[drafting]
        hidden = self.hidden_of(plan, result, drafting, unread, hidden_states)
        position = to_device(unread.position, host.device)
        copy_to(host.idx_mapping[: len(slots)], slots)
        row_start = host.input_buffers.query_start_loc[: len(unread.row_start)]
        copy_to(row_start, unread.row_start)
        slot_mappings = host.block_tables.compute_slot_mappings(
            host.idx_mapping[: len(slots)], row_start, position, len(position)
        )
        host.store_context(hidden, position, slot_mappings)

    def _run_blocks(self, result: StepResult, drafting: np.ndarray) -> torch.Tensor:
        """One forward over the blocks of all requests, or several where their rows do not fit."""
        host = self.host
        num_rows, at_once = host.num_block_rows, host.max_num_tokens // host.num_block_rows
        blocks = torch.empty(
            (len(drafting), host.block_len, host.hidden_size), dtype=host.dtype, device=host.device
        )
        emits = np.flatnonzero(result.emits[drafting])
        for first in range(0, len(emits), at_once):
            rows = emits[first : first + at_once]
            out = self._run_some(result, drafting[rows]).view(len(rows), num_rows, -1)
            blocks[to_device(rows, host.device)] = out[:, num_rows - host.block_len :]
        return blocks

    def _run_some(self, result: StepResult, req: np.ndarray) -> torch.Tensor:
        """[num_reqs * num_block_rows, hidden] outputs of the blocks of some requests of the batch."""
        host, slots, end = self.host, result.slots[req], result.end[req]
        num_rows = host.num_block_rows
        window_start = self.backlog.window_start[slots]
        self.drafter.use_requests(slots, window_start)
        tokens = host.input_buffers.input_ids[: len(req) * num_rows].view(-1, num_rows)
        tokens.fill_(host.parallel_drafting_token_id)
        tokens[:, 0] = self.tokens(slots, end)
        # Rows past the longest context stand at its end, as vLLM has them.
        position = np.minimum(end[:, None] + np.arange(num_rows), host.max_model_len - 1).reshape(-1)
        on_device = to_device(position, host.device)
        host.input_buffers.positions[: len(position)] = on_device
        row_start = np.arange(len(req) + 1) * num_rows
        seq_lens = np.minimum(end + num_rows, host.max_model_len) - window_start
        out, _ = self.drafter.run_sequences(row_start, seq_lens, on_device, None, host._group_causal)
        return out
