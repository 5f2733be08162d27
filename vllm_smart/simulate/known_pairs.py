"""Where expansions come from: a trace, what an engine has learnt of acceptance, or a number."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vllm_smart.config import MAX_CHILDREN, AcceptanceConfig
from vllm_smart.errors import ConfigError, TraceError
from vllm_smart.kernels.grow import CONFIDENCE_EDGES, NUM_CONFIDENCES
from vllm_smart.scheduler import AcceptanceModel
from vllm_smart.scheduler.acceptance_state import kept_acceptance
from vllm_smart.simulate.drafter import NUM_DEPTHS, Expansions
from vllm_smart.trace import Drafted, read_trace
from vllm_smart.trace.verdicts import ACCEPTED, Continuation, continuations, verdicts

_PER_CELL = 2048  # expansions that are made up
# How sure of itself a drafter is: its first choice's probability is Beta-distributed around its mean
# with so many observations' worth. Few: mostly near 0 or 1, as drafters are.
_OBSERVATIONS = 1.5

_Found = tuple[list[int], list[int], list[npt.NDArray[np.float32]], list[int]]


def of_trace(path: Path) -> Expansions:
    """Those that were recorded on the target's path, with what the target took.

    Raises:
        TraceError: it is not a trace, or none of them can be judged.
    """
    trace = read_trace(path)
    found: _Found = ([], [], [], [])
    for step, followed in zip(trace.steps, continuations(trace.steps), strict=True):
        for request in step.decision.requests:
            if request.request in followed:
                _add(request, followed[request.request], found)
    depth, confidence, prob, taken = found
    if not taken:
        raise TraceError(
            f"--acceptance {path}: no recorded tree can be judged. Record one with trace.path and a "
            "drafter, for some hundred steps."
        )
    return Expansions.of(np.array(depth), np.array(confidence), np.stack(prob), np.array(taken))


def _add(request: Drafted, continuation: Continuation, found: _Found) -> None:
    verdict = verdicts(request, continuation)
    parent, rank = request.parent, request.rank
    for node in np.unique(parent[1:]).tolist():
        depth = int(request.depth[node]) + 1
        if verdict[node] != ACCEPTED or depth > len(continuation):
            continue
        children = np.flatnonzero(parent == node)
        children = children[request.draft_prob[children] > 0]
        if not len(children):
            continue
        prob = np.zeros(MAX_CHILDREN, np.float32)
        prob[rank[children]] = request.draft_prob[children]
        hit = rank[children[request.token[children] == continuation[depth - 1]]]
        depths, confidences, probs, takens = found
        depths.append(depth)
        confidences.append(_confidence(request, node))
        probs.append(prob)
        takens.append(int(hit[0]) if len(hit) else -1)


def _confidence(request: Drafted, node: int) -> int:
    """As `confidence_of` has it, of one recorded node."""
    if node == 0:
        return NUM_CONFIDENCES - 1
    above = request.path_prob[request.parent[node]]
    return int(np.count_nonzero(request.path_prob[node] >= CONFIDENCE_EDGES * above))


def of_state(path: Path, seed: int) -> Expansions:
    """Made up, such that they promise on average what an engine has kept of acceptance.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        learnt = kept_acceptance(path)
        has_ngrams = len(learnt) > len(AcceptanceModel(AcceptanceConfig()).learnt())
        model = AcceptanceModel(AcceptanceConfig(), has_ngrams=has_ngrams)
        model.relearn(learnt)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--acceptance {path}: is not what acceptance.state keeps ({error}). Give such a file, a "
            "trace, or a number such as 0.7."
        ) from error
    return made_up(np.stack([model.mean_by_rank(depth + 1) for depth in range(NUM_DEPTHS)]), seed)


def of_number(first: float, seed: int) -> Expansions:
    """Of a drafter whose first choice is taken so often, and later ones of what it leaves.

    Raises:
        ConfigError: it is no probability.
    """
    if not 0.0 < first < 1.0:
        raise ConfigError(f"--acceptance {first}: must be between 0 and 1, such as 0.7.")
    by_rank = first * np.concatenate(([1.0], 0.4 * (1 - first) ** np.arange(1, MAX_CHILDREN)))
    mean = np.broadcast_to(by_rank, (NUM_DEPTHS, NUM_CONFIDENCES, MAX_CHILDREN))
    return made_up(mean, seed)


def made_up(mean: npt.NDArray[np.floating], seed: int) -> Expansions:
    """Expansions of a drafter that means what it says.

    Args:
        mean: [NUM_DEPTHS, NUM_CONFIDENCES, MAX_CHILDREN] how often each child is taken.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    shape = NUM_DEPTHS, NUM_CONFIDENCES, _PER_CELL
    first = np.clip(mean[..., :1], 1e-3, 1 - 1e-3)
    alpha, beta = _OBSERVATIONS * first, _OBSERVATIONS * (1 - first)
    top = rng.beta(alpha, beta, shape)
    rest = (1 - top)[..., None] * mean[..., None, 1:] / (1 - first)[..., None]
    prob = np.concatenate((top[..., None], rest), axis=-1)
    prob /= np.maximum(prob.sum(axis=-1, keepdims=True), 1.0)
    # A drafter's first choice is its likeliest.
    prob = -np.sort(-prob, axis=-1)
    below = np.cumsum(prob, axis=-1)
    taken = (rng.random(shape)[..., None] >= below).sum(axis=-1)
    taken[taken == MAX_CHILDREN] = -1
    depth, confidence, _ = np.indices(shape)
    return Expansions.of(
        depth.reshape(-1) + 1, confidence.reshape(-1), prob.reshape(-1, MAX_CHILDREN), taken.reshape(-1)
    )
