"""Growing trees of what the drafter's process has published."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_smart.adapter.drafter.host_growth import DrafterPart, HostGrowth
from vllm_smart.adapter.drafter.request_ends import RequestEnds
from vllm_smart.adapter.overlap.boards import Boards
from vllm_smart.adapter.runtime import TreeRuntime
from vllm_smart.growth.drafting_step import DraftingStep
from vllm_smart.growth.log import GrowthLog
from vllm_smart.growth.published import Beside, Found, PublishedSource
from vllm_smart.overlap.drafts import Miss
from vllm_smart.proposer import CandidatePool, GrowthBounds, StepGrammars


@dataclass(frozen=True)
class _StepLookup:
    """Finds trees for the requests of a step's pool; implements `Lookup`."""

    boards: Boards
    slots: np.ndarray  # [num_reqs] of the pool
    end: np.ndarray  # [num_reqs] positions of their last tokens

    @property
    def is_drafting(self) -> bool:
        return self.boards.drafter.is_there

    def find(self, req: int) -> Found:
        return self.boards.find(int(self.slots[req]), int(self.end[req]))


class PlacedGrowth(HostGrowth):
    """Looks trees up where an inline drafter would grow them."""

    is_beside = True

    def __init__(
        self, boards: Boards, runtime: TreeRuntime, ends: RequestEnds, max_wait_ms: float | None
    ) -> None:
        """Args:
        boards: where the drafter publishes.
        runtime: whose controller decides.
        ends: where requests end.
        max_wait_ms: most that a step waits for the drafter; None: as long as it pays.
        """
        super().__init__(None, runtime, ends)
        self.boards = boards
        self.beside = self.placement = Beside(max_wait_ms)
        self._counted = boards.drafter.drafts.counted
        self._waited_s, self._restarts = 0.0, 0

    def grow(
        self, step: DraftingStep, hidden_states: list[torch.Tensor], temperature: torch.Tensor
    ) -> GrowthLog:
        log = super().grow(step, hidden_states, temperature)
        self._count()
        return log

    def drafter_part(
        self,
        step: DraftingStep,
        pool: CandidatePool,
        emits: np.ndarray,
        useful_depth: np.ndarray,
        hidden_states: list[torch.Tensor],
        temperature: torch.Tensor,
        grammars: StepGrammars,
    ) -> DrafterPart:
        """What is published of the requests that draft; nothing of it is waited for yet."""
        rows = step.drafting_rows
        grows = rows[emits[rows]]
        lookup = _StepLookup(self.boards, step.slots, step.result.end[step.growing])
        source = PublishedSource(lookup, grows, grammars)
        self._runtime.reports.stats.record_lookups(len(source.hits), source.misses.values())
        self._judge(step, source)
        bounds = GrowthBounds(
            useful_depth=useful_depth,
            most_rows=np.full_like(useful_depth, np.iinfo(np.int32).max),
            max_width=pool.limits.width,
        )
        num_told = max(1, self.boards.num_told)
        return DrafterPart(source, grows, bounds, num_told, num_told, 0.0)

    def _judge(self, step: DraftingStep, source: PublishedSource) -> None:
        """What was foreseen of one request, against what was found."""
        if self.boards.foreseen is None:
            return
        slot, chance = self.boards.foreseen
        found = [source.found.get(req) for req in np.flatnonzero(step.slots == slot).tolist()]
        if found and found[0] is not None:
            is_hit = not isinstance(found[0], Miss)
            self._runtime.reports.stats.record_foreseen(chance, is_hit)

    def _count(self) -> None:
        """What the drafter has run since the last step, and how long this one has waited for it."""
        drafter, waited_s = self.boards.drafter, self.beside.wait_s
        counted = drafter.drafts.counted
        levels, nodes, busy_ns = np.maximum(counted - self._counted, 0).tolist()
        self._runtime.reports.stats.record_overlap(
            levels,
            nodes,
            busy_ns / 1e9,
            waited_s - self._waited_s,
            drafter.num_restarts - self._restarts,
        )
        self._counted, self._waited_s, self._restarts = counted, waited_s, drafter.num_restarts
