"""Which candidates the target accepts, told from the tokens that it went on to emit.

The target samples one token per position, whatever tree is verified (that is what makes trees
lossless), so what a request emitted later judges candidates that were never verified.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vllm_smart.trace.reader import Step
from vllm_smart.trace.records import Drafted

ACCEPTED, REJECTED, UNKNOWN = 1, 0, -1

Continuation = tuple[int, ...]


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
        tokens = {request.request: request.token for request in decision.requests}
        found: dict[str, Continuation] = {}
        for verified in outcome.requests if outcome is not None else ():
            path = tokens[verified.request][list(verified.accepted)].tolist()
            emitted = (*path, verified.bonus_token, *later.get(verified.request, ()))
            found[verified.request] = emitted[: max(deepest, len(path) + 1)]
        by_step.append(found)
        later, later_step = found, decision.step
    return by_step[::-1]


def verdicts(drafted: Drafted, continuation: Continuation) -> npt.NDArray[np.int8]:
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
