"""A block drafter as a source of candidates: levels are read off blocks that have run already."""

import numpy as np
import torch

from vllm_smart.adapter.drafter.block_speculator import TreeBlockSpeculator
from vllm_smart.adapter.drafter.model_source import ModelSource
from vllm_smart.arrays import to_device
from vllm_smart.proposer import CandidatePool, Frontier


class BlockSource(ModelSource):
    """The likeliest tokens at the place after each node: no level costs a forward."""

    _host: TreeBlockSpeculator

    def _to_logits(self, pool: CandidatePool, frontier: Frontier) -> torch.Tensor:
        of, device = pool.candidates, self._host.device
        row = np.searchsorted(self._drafting, frontier.req)
        depth = of.depth[frontier.req, frontier.node]
        rows = self._context.to_logits[to_device(row, device), to_device(depth, device)]
        return self._host.after_tokens(rows, self._tokens(pool, frontier))

    def _tokens(self, pool: CandidatePool, frontier: Frontier) -> torch.Tensor:
        """[num_rows] int64 tokens of the frontier's nodes, the root's own included."""
        token = to_device(pool.candidates.token[frontier.req, frontier.node], self._host.device)
        is_root = to_device(frontier.node == 0, self._host.device)
        root = self._context.reading.tokens(
            self._slots[frontier.req], self._root_position[frontier.req]
        )
        return torch.where(is_root, root.to(token.dtype), token)
