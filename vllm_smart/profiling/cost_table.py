"""What each part of a decoding step costs on this machine, looked up in constant time."""

from typing import Annotated, Any, Protocol, overload

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from vllm_smart.profiling.curve import CostCurve

_Point = tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class StepCost(Protocol):
    """What a policy must know about costs. All times in milliseconds."""

    @overload
    def verify_ms(self, num_tokens: int, context_tokens: int = 0) -> float: ...
    @overload
    def verify_ms(
        self, num_tokens: npt.NDArray[np.integer[Any]], context_tokens: int = 0
    ) -> npt.NDArray[np.float64]: ...
    def verify_ms(
        self, num_tokens: int | npt.NDArray[np.integer[Any]], context_tokens: int = 0
    ) -> float | npt.NDArray[np.float64]:
        """One target forward over `num_tokens` rows that reads `context_tokens` of KV cache."""

    def draft_ms(self, num_rows: int) -> float:
        """One draft level: a forward of the drafter over `num_rows` rows and their candidates."""

    def read_ms(self, num_rows: int, num_candidate_rows: int) -> float:
        """The drafter's pass over tokens it has not read, and the candidates of some of them."""


class CostSamples(BaseModel):
    """Measured points: (tokens or rows, median milliseconds)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verify: tuple[_Point, ...] = Field(min_length=1)
    draft: tuple[_Point, ...] = ()
    # The drafter's forward alone, without candidates; empty = as a draft level.
    read: tuple[_Point, ...] = ()
    # KV tokens read by a step of one row, and its time; empty = context length is not charged.
    context: tuple[_Point, ...] = ()


class CostTable:
    """Costs of one engine on one machine; implements `StepCost`."""

    def __init__(self, samples: CostSamples) -> None:
        """Args:
        samples: measured points; kept for storing.
        """
        self.samples = samples
        self._verify = CostCurve(samples.verify)
        self._draft = CostCurve(samples.draft) if samples.draft else None
        self._read = CostCurve(samples.read) if samples.read else self._draft
        self._context_ms = _slope(samples.context)

    @classmethod
    def from_samples(cls, samples: CostSamples) -> "CostTable":
        """The table that `samples` describe."""
        return cls(samples)

    @overload
    def verify_ms(self, num_tokens: int, context_tokens: int = 0) -> float: ...
    @overload
    def verify_ms(
        self, num_tokens: npt.NDArray[np.integer[Any]], context_tokens: int = 0
    ) -> npt.NDArray[np.float64]: ...
    def verify_ms(
        self, num_tokens: int | npt.NDArray[np.integer[Any]], context_tokens: int = 0
    ) -> float | npt.NDArray[np.float64]:
        """One target forward over `num_tokens` rows that reads `context_tokens` of KV cache."""
        context_ms = self._context_ms * context_tokens
        if isinstance(num_tokens, np.ndarray):
            return self._verify.at_each(num_tokens) + context_ms
        return self._verify.at(num_tokens) + context_ms

    def draft_ms(self, num_rows: int) -> float:
        """One draft level over `num_rows` rows; 0 where no draft was measured."""
        return self._draft.at(num_rows) if self._draft is not None else 0.0

    def read_ms(self, num_rows: int, num_candidate_rows: int) -> float:
        """The drafter's pass over `num_rows` rows, of which some get candidates."""
        if self._read is None or self._draft is None:
            return 0.0
        candidates_ms = self._draft.at(num_candidate_rows) - self._read.at(num_candidate_rows)
        return self._read.at(num_rows) + max(candidates_ms, 0.0)


def _slope(points: tuple[_Point, ...]) -> float:
    """Milliseconds per unit of a line through `points`, at least 0: the median pairwise slope."""
    slopes = [
        (ms - other_ms) / (count - other)
        for index, (count, ms) in enumerate(points)
        for other, other_ms in points[:index]
        if count != other
    ]
    return max(0.0, float(np.median(slopes))) if slopes else 0.0
