"""Forwards of the drafter's process: rows of several requests, and the candidates after them."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_smart.adapter.drafter.drafter import Drafter, DraftRows
from vllm_smart.adapter.overlap.lone_draft_model import LoneDraftModel
from vllm_smart.growth.level import first_choices
from vllm_smart.kernels.coupled_tokens import SamplingTerms
from vllm_smart.kernels.coupled_tokens.cpu import coupled_tokens
from vllm_smart.kernels.top_tokens.cpu import top_tokens
from vllm_smart.overlap.grown_tree import GrownTree
from vllm_smart.overlap.truth import READS, KnownText
from vllm_smart.step import TreeRows


@dataclass
class FollowedRequest:
    """What the drafter has of a request."""

    text: KnownText
    seat: int  # where its keys and values are
    tree: GrownTree
    base: int = 0  # length of the text whose last token is the root
    read_to: int = 0  # tokens of the text that the cache holds
    is_done: bool = False  # whether the published tree says that there is nothing left to expand
    used: int = 0  # when it last had news, by a count

    @property
    def end(self) -> int:
        """Tokens to read; the last one of a prompt when it is known how to sample after it."""
        return self.text.length - (self.text.grows == READS)


@dataclass(frozen=True)
class LevelOfTrees:
    """Rows that expand nodes of trees, by request."""

    requests: list[FollowedRequest]
    row_start: np.ndarray  # [num_reqs + 1]
    token: np.ndarray  # [num_rows] int64
    position: np.ndarray  # [num_rows] int64
    slot_position: np.ndarray  # [num_rows] int64, whose KV slot each row writes
    tail_lens: np.ndarray  # [num_reqs] slots of each tree in use, these rows' included
    mask: np.ndarray  # [num_rows, words] uint64, slots that each row sees

    @classmethod
    def of(cls, nodes: list[tuple[FollowedRequest, np.ndarray]]) -> "LevelOfTrees":
        """Rows that expand nodes [num_nodes] of some requests."""
        parts = [(request, node, *request.tree.rows(node)) for request, node in nodes]
        return cls(
            requests=[request for request, _ in nodes],
            row_start=np.cumsum([0, *(len(node) for _, node in nodes)]),
            token=np.concatenate([r.tree.token[node] for r, node, _, _ in parts]),
            position=np.concatenate([r.base - 1 + r.tree.depth[node] for r, node, _, _ in parts]),
            slot_position=np.concatenate([r.base + slot for r, _, slot, _ in parts]),
            tail_lens=np.array([slot[-1] + 1 for _, _, slot, _ in parts]),
            mask=np.concatenate([mask for _, _, _, mask in parts]),
        )

    @property
    def of_rows(self) -> list[FollowedRequest]:
        """[num_rows] the request of each row."""
        index = np.repeat(np.arange(len(self.requests)), np.diff(self.row_start))
        return [self.requests[i] for i in index.tolist()]

    def attention(self) -> TreeRows:
        """What the rows see."""
        base = np.array([request.base for request in self.requests])
        return TreeRows(
            query_start_loc=self.row_start.astype(np.int32),
            seq_lens=(base + self.tail_lens).astype(np.int32),
            tail_lens=self.tail_lens.astype(np.int32),
            ancestor_mask=self.mask,
        )


class Forwards:
    """Runs the draft model."""

    def __init__(self, model: LoneDraftModel, children: int) -> None:
        """Args:
        model: the draft model.
        children: candidates after each row.
        """
        self._model, self._drafter, self._children = model, Drafter(model), children

    def read(
        self,
        requests: list[FollowedRequest],
        token: np.ndarray,
        position: np.ndarray,
        row_start: np.ndarray,
    ) -> torch.Tensor:
        """[num_rows, hidden] of rows that see all tokens before them.

        Args:
            requests: of the rows.
            token, position: [num_rows] of texts, one after the other.
            row_start: [num_reqs + 1] first row of each request, then num_rows.
        """
        self._put(requests, token, position)
        ends = position[row_start[1:] - 1] + 1
        return self._drafter.run_sequences(row_start, ends, torch.from_numpy(position), None)[0]

    def level(self, rows: LevelOfTrees) -> tuple[np.ndarray, np.ndarray]:
        """Candidates after each row of a level; see `candidates`."""
        self._put(rows.requests, rows.token, rows.position)
        attention = rows.attention()
        out, _ = self._drafter.run_rows(
            DraftRows(
                torch.from_numpy(rows.slot_position), torch.from_numpy(attention.query_start_loc)
            ),
            None,
            lambda builder, table: builder.tree_metadata(attention, table),
            self._model.graph_for(len(rows.token)),
        )
        return self.candidates(out, rows.of_rows, rows.position)

    def _put(self, requests: list[FollowedRequest], token: np.ndarray, position: np.ndarray) -> None:
        """Prepare a forward over `token` [num_rows] at `position` of some requests."""
        seats, num_rows = np.array([request.seat for request in requests]), len(token)
        self._drafter.use_requests(seats, np.zeros(len(seats)))
        self._model.input_buffers.input_ids[:num_rows] = torch.from_numpy(token)
        self._model.input_buffers.positions[:num_rows] = torch.from_numpy(position)

    def candidates(
        self, out: torch.Tensor, requests: list[FollowedRequest], position: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest tokens after each row, or samples where the target samples.

        Args:
            out: [num_rows, hidden].
            requests: [num_rows] of the rows.
            position: [num_rows] of the rows' tokens, which the target's noise goes by.

        Returns:
            tokens [num_rows, children] int64 and probabilities float32, best first, 0 where a request
            may have no such child.
        """
        terms, logits = (
            [request.text.terms for request in requests],
            self._model.compute_draft_logits(out, 0),
        )
        temperature = np.array([each.temperature for each in terms], np.float32)
        shape = (len(terms), self._children)
        token, prob = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        sampled, greedy = np.flatnonzero(temperature > 0), np.flatnonzero(temperature <= 0)
        if len(greedy):
            named = top_tokens(logits[greedy], torch.zeros(len(greedy)), self._children)
            token[greedy], prob[greedy] = (each.numpy() for each in named)
        if len(sampled):
            by_row = SamplingTerms(
                temperature,
                np.array([each.seed for each in terms], np.int64),
                np.array([each.top_k for each in terms], np.int32),
                np.array([each.top_p for each in terms], np.float32),
                self._model.use_fp64_gumbel,
            )
            at = position[sampled].astype(np.int64)
            named = coupled_tokens(logits[sampled], sampled, at, by_row, self._children)
            token[sampled], prob[sampled] = named
        chain_only = np.array([each.chain_only for each in terms])
        return token, np.clip(np.nan_to_num(first_choices(prob, chain_only)), 0, 1)
