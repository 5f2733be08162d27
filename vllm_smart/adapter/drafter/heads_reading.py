"""Reading of several MTP heads, one for each further token: every head reads what is known.

Head i takes the token that stands i + 1 after its row, and what head i - 1 has made of the row. So its
last i rows wait for drafts (`heads_source`), and are read again once text stands there.
"""

import numpy as np
import torch

from vllm_smart.adapter.drafter.heads_speculator import TreeHeadsSpeculator
from vllm_smart.adapter.drafter.reading import Reading, side_by_side
from vllm_smart.arrays import to_device
from vllm_smart.proposer.backlog import UnreadRows
from vllm_smart.step import StepPlan, StepResult


class HeadsReading(Reading):
    """Rows go through one head after the other, as far as the token that each takes is known."""

    host: TreeHeadsSpeculator

    def start(self) -> None:
        super().start()
        self.backlog.num_reread = self.host.num_heads - 1
        # [max_num_reqs] rows of the latest reading: those of a request that has just begun are few.
        self._num_read = np.zeros(self.host.max_num_reqs, np.int64)

    def deepest(self, slots: np.ndarray) -> np.ndarray:
        """Head i goes on from i rows before the root, which must have been read."""
        return np.minimum(self._num_read[slots], self.host.num_heads)

    def read(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        unread: UnreadRows,
        hidden_states: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run every head over what it has not read; see `Reading`.

        Returns:
            [num_drafting, hidden] what logits of the token after each root are computed from, and
            [num_drafting, num_heads, hidden] what each head has made of the last row that it has read.
        """
        host, slots = self.host, result.slots[drafting]
        self.touch(result, drafting, unread)
        self._num_read[slots] = unread.end - unread.first
        made = torch.zeros(
            (len(slots), host.num_heads, host.hidden_size), dtype=host.dtype, device=host.device
        )
        to_logits = torch.zeros_like(made[:, 0])
        for first, part in unread.parts(host.max_num_tokens):
            of = np.arange(first, first + len(part.first))  # requests of the part
            hidden = self.hidden_of(plan, result, drafting[of], part, hidden_states)
            for head in range(host.num_heads):
                end = np.minimum(part.end, unread.end[of] - head)  # whose token is known
                has_rows = end > part.first
                if not has_rows.any():
                    break
                hidden = hidden[to_device(np.flatnonzero(part.position < end[part.req]), host.device)]
                of, part = of[has_rows], UnreadRows.between(part.first[has_rows], end[has_rows])
                token = self.tokens(slots[of[part.req]], part.position + head + 1)
                out, hidden = self.run_head(head, slots[of], part, token, hidden)
                at, last = to_device(of, host.device), to_device(part.row_start[1:] - 1, host.device)
                made[at, head] = hidden[last]
                if head == 0:
                    to_logits[at] = out[last]
        self._keep_last(plan, result, drafting, hidden_states)
        return to_logits, made

    def run_head(
        self, head: int, slots: np.ndarray, rows: UnreadRows, token: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[num_rows, hidden] each: what logits are computed from, and what the next head takes.

        Args:
            head: which.
            slots, rows, token, hidden: as for `run_rows`.
        """
        self.host.head = head
        return self.run_rows(slots, rows, token, hidden)

    def _keep_last(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        hidden_states: list[torch.Tensor],
    ) -> None:
        """Keep what the next step reads again."""
        start, end = result.start[drafting], result.end[drafting]
        rows = UnreadRows.between(np.maximum(start, end - self.backlog.num_reread), end)
        req = drafting[rows.req]
        hidden = side_by_side(hidden_states, self.target_rows(plan, req, rows.position))
        self.backlog.keep(result.slots[req], rows.position, [hidden])
