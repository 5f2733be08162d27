"""Reading of a drafter that keeps no cache: it looks at the target's, and so has missed nothing."""

import numpy as np
import torch

from vllm_smart.adapter.drafter.reading import Reading
from vllm_smart.proposer.backlog import UnreadRows
from vllm_smart.step import StepPlan, StepResult


class RootReading(Reading):
    """The last known row of each request, at every step that drafts."""

    def reserve(self, hidden_states: list[torch.Tensor]) -> None:
        pass  # nothing is kept

    def start(self) -> None:
        super().start()
        self.marks = None
        self.backlog.take_all_for_read()

    def num_unread(self, result: StepResult) -> int:
        return len(result.slots)

    @property
    def most_late(self) -> int:
        return 1

    def keep_unread(
        self,
        plan: StepPlan,
        result: StepResult,
        drafting: np.ndarray,
        hidden_states: list[torch.Tensor],
    ) -> None:
        pass

    def unread(self, result: StepResult, drafting: np.ndarray) -> UnreadRows:
        end = self.readable_end(result)[drafting]
        return UnreadRows.between(end - 1, end)
