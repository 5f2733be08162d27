"""What one line of a trace holds: a header, then decisions and what came of them.

Probabilities are written as base64 of little-endian float32, what n-grams count as that of int16:
exact, and much cheaper than decimals, which matters between two decoding steps.
"""

import base64
import binascii
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from vllm_smart.config import SmartConfig
from vllm_smart.kernels.evidence import MODEL
from vllm_smart.profiling import Correction, CostSamples
from vllm_smart.scheduler import Choice, StepLoad

SCHEMA_VERSION: Final = 6
# 3 knew the drafter's candidates alone; before 5 none were ranked by the target's noise; before 6 a
# choice was charged for all that the drafter had read.
READ_VERSIONS = (3, 4, 5, SCHEMA_VERSION)


def _ints(value: Any) -> npt.NDArray[np.int64]:
    array = np.asarray(value)
    if array.ndim != 1 or (array.size and array.dtype.kind != "i"):
        raise ValueError("must be a list of integers")
    return array.astype(np.int64, copy=False)


def _decoded(value: Any, dtype: str) -> Any:
    """The array that a string stands for; anything else is left as it is."""
    if not isinstance(value, str):
        return value
    try:
        return np.frombuffer(base64.b64decode(value, validate=True), dtype)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is not base64 of {np.dtype(dtype).name} ({error})") from error


def _small_ints(value: Any) -> npt.NDArray[np.int64]:
    return _ints(_decoded(value, "<i2"))


def _probs(value: Any) -> npt.NDArray[np.float32]:
    array = np.asarray(_decoded(value, "<f4"), np.float32)
    if array.ndim != 1 or not ((array >= 0) & (array <= 1)).all():
        raise ValueError("must be probabilities, from 0 to 1")
    return array


def _base64(dtype: str) -> PlainSerializer:
    return PlainSerializer(
        lambda array: base64.b64encode(array.astype(dtype, copy=False).tobytes()).decode(),
        return_type=str,
    )


Ints = Annotated[
    npt.NDArray[np.int64],
    BeforeValidator(_ints),
    PlainSerializer(lambda array: array.tolist(), return_type=list[int]),
]
SmallInts = Annotated[npt.NDArray[np.int64], BeforeValidator(_small_ints), _base64("<i2")]
Probs = Annotated[npt.NDArray[np.float32], BeforeValidator(_probs), _base64("<f4")]
_Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class Header(_Record):
    """The first line: under what the trace was taken."""

    kind: Literal["header"] = "header"
    schema_version: Literal[3, 4, 5, 6] = SCHEMA_VERSION
    created: str  # ISO 8601, UTC
    config: SmartConfig  # node budget resolved
    costs: CostSamples | None  # None where the policy knew none


class Costs(_Record):
    """From here on, decisions are made by other costs than the header's."""

    kind: Literal["costs"] = "costs"
    costs: CostSamples


class Said(_Record):
    """What speaks for the candidates of a request, where several sources do; columns as theirs."""

    model_prob: Probs  # [num_candidates] what the drafter says, given the parent; 0 = not named
    model_rank: SmallInts  # [num_candidates] among its choices after the parent
    match_len: SmallInts  # [num_candidates] tokens before it that stood before; 0 = no n-gram
    count: SmallInts  # [num_candidates] how often it has followed them
    share: Probs  # [num_candidates] of the n-grams after its parent, as they are weighed
    is_sampled: bool  # whether the target draws at a temperature


class Drafted(_Record):
    """The candidates of one request that will decode in the next step.

    Column i of the arrays is candidate i; candidate 0 is the root. Requests that did not draft
    have the root alone.
    """

    request: str
    token: Ints  # [num_candidates], root: -1
    parent: Ints  # [num_candidates], root: -1
    depth: Ints  # [num_candidates], root: 0
    rank: Ints  # [num_candidates] among its siblings, 0 = the likeliest
    source: SmallInts  # [num_candidates] who named it, as in `kernels.evidence`, root: -1
    draft_prob: Probs  # [num_candidates] given the parent; 0 = ruled out
    path_prob: Probs  # [num_candidates] expected acceptance, of the whole path
    max_depth: int  # deeper nodes would be wasted: the request ends before
    max_rows: int  # most candidates of the request that the drafter could expand in this step
    max_nodes: _Count | None = None  # most draft nodes that the request allows; None = no say
    weight: float = Field(default=1.0, gt=0)  # what a token of the request is worth, 1 on average
    num_draft_nodes: _Count  # chosen for verification: so many of the best
    # Whether it samples, and the drafter's candidates are ranked by the noise of its samples.
    is_coupled: bool = False
    said: Said | None = None  # None where nobody but the drafter was asked

    @model_validator(mode="before")
    @classmethod
    def _was_the_models(cls, content: Any) -> Any:
        """Schema 3 did not say who named a candidate: there was but one."""
        token = content.get("token") if isinstance(content, dict) else None
        if isinstance(token, list | np.ndarray) and "source" not in content:
            source = [-1, *[MODEL] * (len(token) - 1)]
            return {**content, "source": source}
        return content

    @model_validator(mode="after")
    def _is_a_forest_of_one(self) -> "Drafted":
        size = len(self.token)
        arrays: list[npt.NDArray[Any]] = [self.parent, self.depth, self.rank, self.source]
        arrays += [self.draft_prob, self.path_prob]
        if (said := self.said) is not None:
            arrays += [said.model_prob, said.model_rank, said.match_len, said.count, said.share]
        if not size or any(len(array) != size for array in arrays):
            raise ValueError("the arrays of a request must have one length, at least 1")
        parent = self.parent[1:]
        if self.parent[0] != -1 or (parent < 0).any() or (parent >= np.arange(1, size)).any():
            raise ValueError("parents must come before their children, the root first")
        if self.depth[0] != 0 or (self.depth[1:] != self.depth[parent] + 1).any():
            raise ValueError("depth must grow by one per edge")
        if (self.path_prob[1:] > self.path_prob[parent]).any():
            raise ValueError("a path must not be likelier than its beginning")
        if self.num_draft_nodes > np.count_nonzero(self.path_prob[1:]):
            raise ValueError("more draft nodes were chosen than there are candidates")
        return self


class Decision(_Record):
    """What was drafted for the next step, and how many nodes of it were chosen."""

    kind: Literal["decision"] = "decision"
    step: _Count
    # For whom the drafter ran: explore = all, and some nodes are verified in any case; probe = the same
    # for few; none = candidates, where there are some, are n-grams.
    drafting: Literal["all", "explore", "none", "probe"]
    requests: tuple[Drafted, ...]  # that decode in the next step
    load: StepLoad  # of the next step, before draft nodes
    read_rows: _Count  # tokens that the drafter read before its first candidates
    # Of them, prompts and what it had put off: no choice is charged for these.
    sunk_rows: _Count = 0
    candidate_rows: _Count  # of them, those that got candidates
    level_rows: tuple[_Count, ...]  # rows of each further draft level that was run
    # Expected acceptance of undrafted levels, parents accepted, from depth 2, by the parent's
    # confidence and by rank, flattened; the last one stands for deeper levels, too.
    child_acceptance: tuple[Probs, ...]
    max_width: _Count  # most rows per request and level that the drafter's buffers hold
    correction: Correction | None  # of the latest costs, by which was decided
    # Predicted: drafting, and the overhead of steps that draft; below 0 where a correction is.
    spent_ms: float = Field(allow_inf_nan=False)
    choice: Choice


class Verified(_Record):
    """What came of one request's tree. Numbers are candidates of the decision."""

    request: str
    verified: tuple[int, ...]  # nodes verified, best first: what the scheduler left of the choice
    accepted: tuple[int, ...]  # the accepted path, root excluded
    bonus_token: _Count  # what the target sampled where the path ends

    @property
    def num_tokens(self) -> int:
        """Tokens emitted, the bonus token included."""
        return len(self.accepted) + 1


class Outcome(_Record):
    """What came of a decision. Requests that ended or were put off are missing."""

    kind: Literal["outcome"] = "outcome"
    step: _Count  # of the decision
    requests: tuple[Verified, ...]
    measured_ms: _Milliseconds | None  # of the step that verified; None if nobody timed it


Record = Header | Costs | Decision | Outcome
