"""One draft level: the rows that are run, where their KV goes and what they see."""

from dataclasses import dataclass

import numpy as np

from vllm_smart.proposer import Candidates, Frontier
from vllm_smart.step import TreeRows


@dataclass(frozen=True)
class LevelRows:
    """Rows of one draft forward, by the requests that the drafter runs for."""

    token: np.ndarray  # [num_rows] int64
    position: np.ndarray  # [num_rows] int64 of the row itself
    slot_position: np.ndarray  # [num_rows] int64, the position whose KV slot the row writes
    source: np.ndarray  # [num_rows] int64, row of the parent in the forward before
    attention: TreeRows


class DraftSlots:
    """The scratch KV of the drafter's tree, in each request's lookahead slots.

    Slot s of a request lies right after its prefix; it is rewritten by the next draft prefill,
    so nothing here outlives the step. Source: the layout vLLM's own chains use.
    """

    def __init__(
        self,
        prefix_len: np.ndarray,
        capacity: np.ndarray,
        pool_size: int,
        window_start: np.ndarray,
        drafting: np.ndarray,
        keeps_cache: bool = True,
    ) -> None:
        """Start with no slot taken.

        Args:
            prefix_len: [num_reqs] position after the drafter's prefix, where its tree starts.
            capacity: [num_reqs] slots that each request may use.
            pool_size: candidates a request's pool can hold.
            window_start: [num_reqs] first position of the prefix that the drafter sees.
            drafting: [num_drafting] the requests that the drafter runs for, ascending.
            keeps_cache: whether rows write what later ones see. Without, all stand where the prefix
                ends, and see it alone; such rows are chains.
        """
        words = max(1, -(-int(capacity.max(initial=0)) // 64))
        self.prefix_len = prefix_len
        self.window_start = window_start
        self.capacity = capacity
        self.used = np.zeros_like(prefix_len)
        # [num_reqs, pool_size, words] slots of each expanded candidate and its ancestors
        self._mask = np.zeros((len(prefix_len), pool_size, words), np.uint64)
        # [num_reqs, pool_size] row of each candidate in the latest forward; the first has the roots
        self._row = np.zeros((len(prefix_len), pool_size), np.int64)
        self._row[drafting, 0] = np.arange(len(drafting))
        self._drafting, self._keeps_cache = drafting, keeps_cache

    def take(self, candidates: Candidates, frontier: Frontier) -> LevelRows:
        """Give each frontier node its slot and describe the forward that expands them."""
        req, node = frontier.req, frontier.node
        slot = self.used[req] + np.arange(len(req)) - frontier.row_start[req]
        parent = candidates.parent[req, node]
        mask = self._mask[req, parent]
        mask[np.arange(len(req)), slot // 64] |= np.uint64(1) << (slot % 64).astype(np.uint64)
        self._mask[req, node] = mask
        source = self._row[req, parent]
        self._row[req, node] = np.arange(len(req))
        self.used = self.used + np.diff(frontier.row_start)
        drafting = self._drafting
        row_start = np.append(frontier.row_start[drafting], len(req))
        seq_lens = self.prefix_len - self.window_start
        position = self.prefix_len[req] - 1
        if self._keeps_cache:
            seq_lens = seq_lens + self.used
            position = position + candidates.depth[req, node]
        return LevelRows(
            token=candidates.token[req, node],
            position=position,
            slot_position=self.prefix_len[req] + slot,
            source=source,
            attention=TreeRows(
                query_start_loc=row_start.astype(np.int32),
                seq_lens=seq_lens[drafting].astype(np.int32),
                tail_lens=self.used[drafting].astype(np.int32),
                ancestor_mask=mask,
            ),
        )


def first_choices(prob: np.ndarray, chain_only: np.ndarray) -> np.ndarray:
    """`prob` [num_rows, children], all but the first choice of chain-only rows ruled out (0)."""
    if not chain_only.any():
        return prob
    prob = prob.copy()
    prob[chain_only, 1:] = 0.0
    return prob
