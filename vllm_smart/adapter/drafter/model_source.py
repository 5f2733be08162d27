"""The drafter as a source of candidates: its likeliest tokens after each node, a forward per level."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_smart.adapter.drafter.drafter import LOGITS_ROWS, DraftRows
from vllm_smart.adapter.drafter.reading import Reading
from vllm_smart.adapter.drafter.target_noise import TargetNoise
from vllm_smart.arrays import HostCopy, copy_to, to_device
from vllm_smart.growth.drafting_step import DraftingStep
from vllm_smart.growth.level import DraftSlots, LevelRows, first_choices
from vllm_smart.kernels.allowed_tokens.cpu import RowMasks
from vllm_smart.kernels.allowed_tokens.logits import masked
from vllm_smart.kernels.top_tokens import cpu as on_cpu
from vllm_smart.proposer import CandidatePool, Frontier, StepGrammars


@dataclass(frozen=True)
class SourceContext:
    """What a source may know of the step whose candidates it makes."""

    step: DraftingStep
    reading: Reading  # that has brought the drafter up to the roots
    draft_slots: DraftSlots  # where the drafter keeps what it computes
    chain_only: np.ndarray  # [num_reqs] bool, requests that may have but one candidate a level
    temperature: torch.Tensor  # [max_num_reqs] float32 by request-state slot
    noise: TargetNoise | None  # that the target samples with, where candidates are coupled to it
    grammars: StepGrammars  # of requests that have some; their nodes were visited
    to_logits: torch.Tensor  # [num_drafting, hidden] what the roots' candidates are computed from
    feedback: torch.Tensor  # [num_drafting, hidden] what the roots hand to their children


class ModelSource:
    """The drafter's likeliest tokens, a forward per level; of one step."""

    name, is_one_shot = "model", False

    def __init__(self, context: SourceContext) -> None:
        """Args:
        context: of the step.
        """
        self._drafter, self._host = context.reading.drafter, context.reading.host
        self._context, self._slots = context, context.step.slots
        self._drafting = context.step.drafting_rows
        self._root_position = context.step.result.end[context.step.growing]
        self._feedback = context.feedback  # of the latest forward, to its rows' children

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        """Add the likeliest tokens after some nodes; see `CandidateSource`."""
        if not len(frontier.req):
            return 0
        to_logits = self._to_logits(pool, frontier)
        # What comes after some is known: the drafter reads them, and is not asked.
        is_forced, masks = self._context.grammars.after(frontier)
        passed = frontier.only(is_forced)
        if len(passed.req):
            frontier = frontier.only(~is_forced)
            to_logits = to_logits[to_device(np.flatnonzero(~is_forced), self._host.device)]
        token, prob = self._likeliest(pool, frontier, to_logits, masks)
        pool.add_children(frontier.req, frontier.node, token, prob)
        pool.pass_over(passed.req, passed.node)
        return len(frontier.req) + len(passed.req)

    def _to_logits(self, pool: CandidatePool, frontier: Frontier) -> torch.Tensor:
        """[num_rows, hidden] what logits of the tokens after some nodes are computed from."""
        context = self._context
        if pool.num_levels:
            return self._run(context.draft_slots.take(pool.candidates, frontier))
        row = np.searchsorted(self._drafting, frontier.req)
        return context.to_logits[to_device(row, self._host.device)]

    def _likeliest(
        self,
        pool: CandidatePool,
        frontier: Frontier,
        to_logits: torch.Tensor,
        masks: RowMasks | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and probabilities, [num_rows, children] each, of what may come after a frontier."""
        children = max(1, pool.limits.children)
        slots, noise = self._slots[frontier.req], self._context.noise
        if not len(slots):
            return np.zeros((0, children), np.int64), np.zeros((0, children), np.float32)
        if noise is not None and noise.is_coupled[slots].any():
            depth = pool.candidates.depth[frontier.req, frontier.node]
            position = self._root_position[frontier.req] + depth
            token, prob = self._likeliest_samples(noise, to_logits, slots, position, children, masks)
        else:
            token, prob = self._likeliest_tokens(to_logits, slots, children, masks)
        if masks is not None:
            # The drafter's vocabulary may have none of the tokens that are allowed.
            np.nan_to_num(prob, copy=False)
        return token, first_choices(prob, self._context.chain_only[frontier.req])

    def _likeliest_tokens(
        self, to_logits: torch.Tensor, slots: np.ndarray, children: int, masks: RowMasks | None
    ) -> list[np.ndarray]:
        """`Drafter.candidates_after` rows of the requests in `slots`, on the host."""
        host, temperature = self._host, self._context.temperature
        of_rows = to_device(slots, host.device)
        if host.device.type == "cpu" and self._are_few(len(slots)):
            logits = masked(host.compute_draft_logits(to_logits, 0), masks)
            return [*on_cpu.top_candidates(logits, of_rows, temperature, children)]
        after = self._drafter.candidates_after(to_logits, temperature[of_rows], children, masks=masks)
        return HostCopy(*after).wait()

    def _likeliest_samples(
        self,
        noise: TargetNoise,
        to_logits: torch.Tensor,
        slots: np.ndarray,
        position: np.ndarray,
        children: int,
        masks: RowMasks | None,
    ) -> list[np.ndarray]:
        """The same, where some of the rows are coupled: of these, what is sampled at `position`."""
        if self._host.device.type != "cpu":
            of_rows = to_device(slots, self._host.device)
            on_device = noise.of_rows(slots, position, self._host.device)
            temperature = self._context.temperature[of_rows]
            return HostCopy(
                *self._drafter.candidates_after(to_logits, temperature, children, on_device)
            ).wait()
        shape = (len(slots), children)
        token, prob = np.empty(shape, np.int64), np.empty(shape, np.float32)
        is_coupled, temperature = noise.is_coupled[slots], self._context.temperature
        for first in range(0, len(slots), LOGITS_ROWS):
            part = slice(first, first + LOGITS_ROWS)
            logits = masked(self._host.compute_draft_logits(to_logits[part], 0), masks, first)
            coupled, others = np.flatnonzero(is_coupled[part]), np.flatnonzero(~is_coupled[part])
            rows = first + coupled
            token[rows], prob[rows] = noise.candidates_after(
                logits[coupled], slots[rows], position[rows], children
            )
            if len(others):
                rows = first + others
                of_rows = torch.from_numpy(slots[rows])
                if self._are_few(len(slots)):
                    named = on_cpu.top_candidates(logits[others], of_rows, temperature, children)
                else:
                    named = on_cpu.top_tokens(logits[others], temperature[of_rows], children)
                token[rows], prob[rows] = named
        return [token, prob]

    def _are_few(self, num_rows: int) -> bool:
        return num_rows * self._host.vocab_size <= on_cpu.MOST_LOGITS

    def _run(self, level: LevelRows) -> torch.Tensor:
        """Run the drafter on a level's rows: [num_rows, hidden] to compute logits from."""
        rows, num_rows, host = level.attention, len(level.token), self._host
        copy_to(host.input_buffers.input_ids[:num_rows], level.token)
        copy_to(host.input_buffers.positions[:num_rows], level.position)
        feedback = self._feedback[to_device(level.source, host.device)]
        slot_position = to_device(level.slot_position, host.device)
        if not host.sees_trees:
            to_logits, self._feedback = self._drafter.run_sequences(
                rows.query_start_loc, rows.seq_lens, slot_position, feedback
            )
            return to_logits
        to_logits, self._feedback = self._drafter.run_rows(
            DraftRows(slot_position, to_device(rows.query_start_loc, host.device)),
            feedback,
            lambda builder, table: builder.tree_metadata(rows, table),
            host.graph_for(num_rows),
        )
        return to_logits
