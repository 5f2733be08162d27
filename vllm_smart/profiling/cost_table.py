"""What each part of a decoding step costs on this machine, looked up in constant time."""

from typing import Annotated, Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from vllm_smart.profiling.curve import CostCurve

_Count = Annotated[int, Field(ge=0)]
_Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Point = tuple[_Count, _Milliseconds]


class Context(NamedTuple):
    """The KV cache that a target step reads besides its own rows."""

    total: float  # tokens before the rows, over all requests
    per_row: float  # the same before each row, on average


NO_CONTEXT = Context(0.0, 0.0)


class StepCost(Protocol):
    """What a policy must know about costs. All times in milliseconds."""

    @overload
    def verify_ms(self, num_tokens: int, context: Context = NO_CONTEXT) -> float: ...
    @overload
    def verify_ms(
        self, num_tokens: npt.NDArray[np.integer[Any]], context: Context = NO_CONTEXT
    ) -> npt.NDArray[np.float64]: ...
    def verify_ms(
        self, num_tokens: int | npt.NDArray[np.integer[Any]], context: Context = NO_CONTEXT
    ) -> float | npt.NDArray[np.float64]:
        """One target forward over `num_tokens` rows that read `context`, and its sampling."""

    def draft_ms(self, num_rows: int) -> float:
        """One draft level: a forward of the drafter over `num_rows` rows and their candidates."""

    def read_ms(self, num_rows: int, num_candidate_rows: int) -> float:
        """The drafter's pass over tokens it has not read, and the candidates of some of them."""

    def overhead_ms(self, num_requests: int, drafts: bool) -> float:
        """What a step takes beyond its forwards, by whether the drafter runs in it."""

    def branching_ms(self, num_requests: int) -> float:
        """What verifying trees takes beyond verifying chains of as many nodes."""


class CostSamples(BaseModel):
    """Measured points: (tokens or rows, milliseconds)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verify: tuple[_Point, ...] = Field(min_length=1)
    # The largest step that was to be timed; beyond the last of `verify` where steps were too slow.
    most_tokens: _Count = 0
    draft: tuple[_Point, ...] = ()
    # The drafter's forward over rows of the target, without candidates; empty = as a draft level.
    read: tuple[_Point, ...] = ()
    # Requests of a step, rows of each, tokens before them, and its time; empty = not charged.
    context: tuple[tuple[_Count, _Count, _Count, _Milliseconds], ...] = ()
    # Whether the drafter runs beside the target: a step waits for no reading, and `draft` is what it
    # waits for a level that is not there.
    beside: bool = False
    # As `verify`, with the drafter drafting beside the steps without a pause; empty = not timed.
    slowed: tuple[_Point, ...] = ()
    # How much repeated timings of a point differed, relative: 0 = not at all.
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class CostTable:
    """Costs of one engine on one machine; implements `StepCost`."""

    def __init__(self, samples: CostSamples) -> None:
        """Args:
        samples: measured points; kept for storing.
        """
        self.samples = samples
        self.verify_curve = CostCurve(samples.verify)
        self._draft = CostCurve(samples.draft) if samples.draft else None
        self._read = CostCurve(samples.read) if samples.read else self._draft
        self._per_token_ms, self._per_row_ms = _context_slopes(samples.context)
        # At each size of `slowed`.
        self._slowdown = [ms / self.verify_curve.at(size) for size, ms in samples.slowed]

    @classmethod
    def from_samples(cls, samples: CostSamples) -> "CostTable":
        """The table that `samples` describe."""
        return cls(samples)

    @overload
    def verify_ms(self, num_tokens: int, context: Context = NO_CONTEXT) -> float: ...
    @overload
    def verify_ms(
        self, num_tokens: npt.NDArray[np.integer[Any]], context: Context = NO_CONTEXT
    ) -> npt.NDArray[np.float64]: ...
    def verify_ms(
        self, num_tokens: int | npt.NDArray[np.integer[Any]], context: Context = NO_CONTEXT
    ) -> float | npt.NDArray[np.float64]:
        """One target forward over `num_tokens` rows that read `context`."""
        fixed_ms, row_ms = self.context_ms(context)
        if isinstance(num_tokens, np.ndarray):
            return self.verify_curve.at_each(num_tokens) + (fixed_ms + row_ms * num_tokens)
        return self.verify_curve.at(num_tokens) + (fixed_ms + row_ms * num_tokens)

    def context_ms(self, context: Context) -> tuple[float, float]:
        """The share of `context` in a forward: what is read once, and what each row computes."""
        return self._per_token_ms * context.total, self._per_row_ms * context.per_row

    def draft_ms(self, num_rows: int) -> float:
        """One draft level over `num_rows` rows; 0 where no draft was measured."""
        return self._draft.at(num_rows) if self._draft is not None else 0.0

    def read_ms(self, num_rows: int, num_candidate_rows: int) -> float:
        """The drafter's pass over `num_rows` rows, of which some get candidates."""
        if self.samples.beside or self._read is None or self._draft is None:
            return 0.0
        candidates_ms = self._draft.at(num_candidate_rows) - self._read.at(num_candidate_rows)
        return self._read.at(num_rows) + max(candidates_ms, 0.0)

    def slowdown(self, num_tokens: int) -> float:
        """How many times as long a step takes while the drafter drafts beside it; 1 = not timed."""
        if not self._slowdown:
            return 1.0
        sizes = [size for size, _ in self.samples.slowed]
        return max(1.0, float(np.interp(num_tokens, sizes, self._slowdown)))

    def overhead_ms(self, num_requests: int, drafts: bool) -> float:
        """0: a table knows forwards alone."""
        return 0.0

    def branching_ms(self, num_requests: int) -> float:
        """0, too."""
        return 0.0


def _context_slopes(points: tuple[tuple[int, int, int, float], ...]) -> tuple[float, float]:
    """Milliseconds per token of context, and per row and token of context: least squares, >= 0.

    Memory-bound kernels pay for the first, compute-bound ones for the second.
    """
    without = {(reqs, rows): ms for reqs, rows, length, ms in points if length == 0}
    rises = [
        (reqs * length, reqs * rows * length, ms - without[reqs, rows])
        for reqs, rows, length, ms in points
        if length and (reqs, rows) in without
    ]
    if not rises:
        return 0.0, 0.0
    per_token, per_row, rise = np.array(rises, np.float64).T
    both = np.linalg.lstsq(np.stack((per_token, per_row), axis=1), rise, rcond=None)[0]
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    alone = [(max(0.0, float(x @ rise / (x @ x))), x) for x in (per_token, per_row)]
    misses = [float(np.square(rise - slope * x).sum()) for slope, x in alone]
    (token_ms, _), (row_ms, _) = alone
    return (token_ms, 0.0) if misses[0] <= misses[1] else (0.0, row_ms)
