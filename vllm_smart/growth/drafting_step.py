"""One step as the drafter sees it: what the target's part has brought, and who drafts then."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from vllm_smart.arrays import HostCopy
from vllm_smart.scheduler import Drafting, StepLoad
from vllm_smart.step import StepPlan, StepResult


@dataclass(frozen=True)
class DraftingStep:
    """What is known before the drafter runs."""

    plan: StepPlan
    # What the step has brought; the most it may have brought while only the device knows.
    result: StepResult
    drafting: np.ndarray  # [num_drafting] batch indices of the requests that the drafter runs for
    growing: np.ndarray  # [num_reqs] of those that grow trees; both ascending, these include those
    decision: Drafting
    load: StepLoad  # of the step that will verify

    @property
    def slots(self) -> np.ndarray:
        """[num_reqs] request-state slots of those that grow trees."""
        slots: np.ndarray = self.result.slots[self.growing]
        return slots

    @property
    def drafting_rows(self) -> np.ndarray:
        """[num_drafting] which of those that grow trees the drafter runs for."""
        return np.searchsorted(self.growing, self.drafting)

    @property
    def scheduled_end(self) -> np.ndarray:
        """[num_drafting] position after the last one, had nothing of the step been rejected."""
        scheduled = self.plan.input_batch.num_scheduled_tokens
        end: np.ndarray = (self.result.start + scheduled)[self.drafting]
        return end


@dataclass(frozen=True)
class StepOutcome:
    """What a step has brought, on its way to the host; the first look may wait."""

    plan: StepPlan
    counts: HostCopy | None  # [num_reqs] tokens sampled, and nodes rejected; None without drafts
    tokens: HostCopy | None  # [max_num_reqs, 1] last token of each request-state slot, for traces

    @classmethod
    def of(
        cls,
        plan: StepPlan,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor | None,
    ) -> "StepOutcome":
        """Start the copies that the step needs.

        Args:
            plan: of the step that has run.
            num_sampled: [num_reqs] int32 tokens that it has emitted.
            num_rejected: [num_reqs] int32 nodes that the walk did not take.
            last_sampled: [max_num_reqs, 1] last token of each request-state slot; None without traces.
        """
        return cls(
            plan,
            HostCopy(num_sampled, num_rejected) if plan.has_drafts else None,
            HostCopy(last_sampled) if last_sampled is not None else None,
        )

    @cached_property
    def result(self) -> StepResult:
        """What is known of each request after the step."""
        if self.plan.is_plain:
            return StepResult.of_plain(self.plan)
        if self.counts is None:
            return StepResult.at_most(self.plan)
        return StepResult.of(self.plan, *self.counts.wait())

    @property
    def last_sampled(self) -> np.ndarray | None:
        """[max_num_reqs] last token of each request-state slot."""
        return None if self.tokens is None else self.tokens.wait()[0][:, 0]
