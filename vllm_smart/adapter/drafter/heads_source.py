"""Several MTP heads as a source of candidates: a level runs the next head over the rows that waited."""

import numpy as np
import torch

from vllm_smart.adapter.drafter.heads_reading import HeadsReading
from vllm_smart.adapter.drafter.heads_speculator import TreeHeadsSpeculator
from vllm_smart.adapter.drafter.model_source import ModelSource, SourceContext
from vllm_smart.arrays import to_device
from vllm_smart.proposer import CandidatePool, Frontier
from vllm_smart.proposer.backlog import UnreadRows


class HeadsSource(ModelSource):
    """Chains: the rows that waited for drafts are those of one path."""

    _host: TreeHeadsSpeculator

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context)
        assert isinstance(context.reading, HeadsReading)
        self._reading = context.reading
        # [num_drafting, level, hidden] what the level's head has made of its rows.
        self._made = context.feedback[:, :0]

    def _to_logits(self, pool: CandidatePool, frontier: Frontier) -> torch.Tensor:
        head, device = pool.num_levels, self._host.device
        row = to_device(np.searchsorted(self._drafting, frontier.req), device)
        self._host.head = head
        if head == 0:
            return self._context.to_logits[row]
        # Rows that end before the root: the first goes on from what was read, the others from drafts.
        read = self._context.feedback[row, head - 1].unsqueeze(1)
        hidden = torch.cat((read, self._made[row]), dim=1).flatten(0, 1)
        root = self._root_position[frontier.req]
        rows = UnreadRows.between(root - head, root)
        token = to_device(_paths(pool, frontier, head).reshape(-1), device)
        slots = self._slots[frontier.req]
        out, made = self._reading.run_head(head, slots, rows, token, hidden)
        self._made = self._made.new_zeros(len(self._drafting), head, made.shape[1])
        self._made[row] = made.view(len(row), head, -1)
        return out[to_device(rows.row_start[1:] - 1, device)]


def _paths(pool: CandidatePool, frontier: Frontier, length: int) -> np.ndarray:
    """[num_rows, length] int64 tokens from below the root to each node of a frontier."""
    of, node = pool.candidates, frontier.node
    tokens = np.empty((len(node), length), np.int64)
    for place in reversed(range(length)):
        tokens[:, place] = of.token[frontier.req, node]
        node = of.parent[frontier.req, node]
    return tokens
