"""Which candidates the target accepts, told from the tokens that it went on to emit.

The target samples one token per position, whatever tree is verified (that is what makes trees
lossless), so what a request emitted later judges candidates that were never verified.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vllm_smart.trace.reader import Step
from vllm_smart.trace.records import Decision, Outcome

ACCEPTED, REJECTED, UNKNOWN = 1, 0, -1

Continuation = tuple[int, ...]


class Paths(Protocol):
    """Candidates of one request, [num_candidates] each; parents come first, the root before all."""

    @property
    def token(self) -> npt.NDArray[np.int64]:
        """Token ids."""

    @property
    def parent(self) -> npt.NDArray[np.integer]:
        """Columns."""

    @property
    def depth(self) -> npt.NDArray[np.integer]:
        """0 at the root."""

    @property
    def path_prob(self) -> npt.NDArray[np.float32]:
        """Expected acceptance."""


def continuations(steps: Sequence[Step]) -> list[dict[str, Continuation]]:
    """The tokens that followed each decision, as far as the trace tells.

    Returns:
        Per step, by request: at least the tokens that it emitted in the next step, bonus token
        included, and what it emitted in the steps right after that, as deep as the trace's pools.
        Requests that emitted nothing in the next step are missing.
    """
    deepest = max(
        (int(request.depth.max()) for step in steps for request in step.decision.requests), default=0
    )
    by_step: list[dict[str, Continuation]] = []
    later: dict[str, Continuation] = {}
    later_step = -1
    for step in reversed(steps):
        decision, outcome = step.decision, step.outcome
        if decision.step + 1 != later_step:
            later = {}
        found: dict[str, Continuation] = {}
        for request, tokens in emitted(decision, outcome).items():
            followed = (*tokens, *later.get(request, ()))
            found[request] = followed[: max(deepest, len(tokens))]
        by_step.append(found)
        later, later_step = found, decision.step
    return by_step[::-1]


def emitted(decision: Decision, outcome: Outcome | None) -> dict[str, Continuation]:
    """What each request emitted in the step that followed `decision`, the bonus token included."""
    token = {request.request: request.token for request in decision.requests}
    return {
        each.request: (*token[each.request][list(each.accepted)].tolist(), each.bonus_token)
        for each in (outcome.requests if outcome is not None else ())
    }


def verdicts(drafted: Paths, continuation: Continuation) -> npt.NDArray[np.int8]:
    """[num_candidates] ACCEPTED, REJECTED, or UNKNOWN where the continuation ends too early.

    A candidate is accepted iff its path from the root spells the tokens that followed.
    """
    verdict = np.full(len(drafted.token), REJECTED, np.int8)
    verdict[0] = ACCEPTED
    known = len(continuation)
    for node in range(1, len(verdict)):
        depth, above = int(drafted.depth[node]), int(verdict[drafted.parent[node]])
        if depth > known:
            verdict[node] = UNKNOWN if above != REJECTED else REJECTED
        elif above == ACCEPTED and drafted.token[node] == continuation[depth - 1]:
            verdict[node] = ACCEPTED
    return verdict
