"""A cost table as live step times have corrected it."""

from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from vllm_smart.profiling.cost_table import NO_CONTEXT, Context, CostTable


@dataclass(frozen=True)
class Correction:
    """Factors of a table's times, and milliseconds that no forward accounts for."""

    # Of a target step: at each size of the table, and linear between them; empty = 1 everywhere.
    verify: tuple[float, ...] = ()
    draft: float = 1.0  # of the drafter's forwards
    context: float = 1.0  # of reading KV cache
    step_ms: float = 0.0  # of every step, and for each of its requests
    request_ms: float = 0.0
    drafting_ms: float = 0.0  # of a step that drafts, further
    drafting_request_ms: float = 0.0
    branching_ms: float = 0.0  # of a step that verifies trees rather than chains, further
    branching_request_ms: float = 0.0


class CorrectedCost:
    """What `table` says, corrected; implements `StepCost`."""

    def __init__(self, table: CostTable, correction: Correction = Correction()) -> None:
        """Args:
        table: measured costs.
        correction: what to make of them.
        """
        self.table = table
        self.correct(correction)

    def correct(self, correction: Correction) -> None:
        """Correct the table in this way from now on."""
        self.correction = correction
        curve = self.table.verify_curve
        self._verify = curve.scaled(np.array(correction.verify)) if correction.verify else curve

    @overload
    def verify_ms(self, num_tokens: int, context: Context = NO_CONTEXT) -> float: ...
    @overload
    def verify_ms(
        self, num_tokens: npt.NDArray[np.integer[Any]], context: Context = NO_CONTEXT
    ) -> npt.NDArray[np.float64]: ...
    def verify_ms(
        self, num_tokens: int | npt.NDArray[np.integer[Any]], context: Context = NO_CONTEXT
    ) -> float | npt.NDArray[np.float64]:
        """One target forward; see `StepCost`."""
        fixed_ms, row_ms = self.table.context_ms(context)
        factor = self.correction.context
        if isinstance(num_tokens, np.ndarray):
            return self._verify.at_each(num_tokens) + factor * (fixed_ms + row_ms * num_tokens)
        return self._verify.at(num_tokens) + factor * (fixed_ms + row_ms * num_tokens)

    def draft_ms(self, num_rows: int) -> float:
        """One draft level."""
        return self.correction.draft * self.table.draft_ms(num_rows)

    def read_ms(self, num_rows: int, num_candidate_rows: int) -> float:
        """The drafter's pass over tokens that it has not read."""
        return self.correction.draft * self.table.read_ms(num_rows, num_candidate_rows)

    def overhead_ms(self, num_requests: int, drafts: bool) -> float:
        """What a step takes beyond its forwards."""
        by = self.correction
        ms = by.step_ms + by.request_ms * num_requests
        if drafts:
            ms += by.drafting_ms + by.drafting_request_ms * num_requests
        return max(ms, 0.0)

    def branching_ms(self, num_requests: int) -> float:
        """What verifying trees takes beyond verifying chains of as many nodes."""
        by = self.correction
        return max(by.branching_ms + by.branching_request_ms * num_requests, 0.0)
