"""Recorded candidates of some sources, judged anew: as an engine would have that had these alone.

What was recorded is what each source said. How likely that makes a candidate was learnt from all
sources, so it is learnt again: from the prior on, in the order of the steps, from what each step
emitted. So every step is judged by steps before it alone. Offsets of single requests are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vllm_smart.config import GrowthLimits, SmartConfig
from vllm_smart.kernels.evidence import EvidenceScores
from vllm_smart.kernels.evidence.cpu import judged_children
from vllm_smart.kernels.outcomes.cpu import judged_nodes
from vllm_smart.proposer import CandidatePool, Candidates, EvidencePool, Frontier
from vllm_smart.proposer.ngram import Continuations
from vllm_smart.scheduler import AcceptanceModel, needs_costs
from vllm_smart.trace.records import Decision, Drafted
from vllm_smart.trace.verdicts import Continuation
from vllm_smart.tree import TreeBatch

Sources = Literal["model", "ngram", "both"]

_Nodes = npt.NDArray[np.int64]
_Path = tuple[int, ...]  # the tokens from below the root to a node

_ANY = np.iinfo(np.int64).max
_COUPLED = 1  # the slot of all requests that are; 0 is that of the others


@dataclass(frozen=True)
class CandidateRow:
    """The candidates of one request, [num_candidates] each; see `Paths`."""

    token: npt.NDArray[np.int64]
    parent: npt.NDArray[np.int32]
    depth: npt.NDArray[np.int32]
    path_prob: npt.NDArray[np.float32]


class Relearnt:
    """What is known about recorded candidates, from step to step."""

    def __init__(self, config: SmartConfig, sources: Sources) -> None:
        """Args:
        config: of the trace, under the policy that is replayed.
        sources: whose candidates there are.
        """
        self.sources = sources
        alike = config.acceptance.model_copy(update={"per_request": False})
        self._acceptance = AcceptanceModel(alike, max_num_reqs=2, has_ngrams=True)
        self._acceptance.add_request(_COUPLED, is_coupled=True)
        self._calibrates = needs_costs(config) and config.acceptance.calibrate

    def begin(self, decision: Decision, limits: GrowthLimits) -> tuple[EvidencePool, "RecordedChoices"]:
        """A pool that has the step's n-grams, where they are wanted, and a source of what was drafted.

        Args:
            limits: of trees, as the policy has them.
        """
        requests, trees = decision.requests, _ngrams(decision.requests)
        caps = [_ANY if request.max_nodes is None else request.max_nodes for request in requests]
        pool = EvidencePool(
            len(requests),
            limits,
            trees.token.shape[1],
            self._scores(requests, limits),
            np.array([request.weight for request in requests], np.float32),
            np.array(caps, np.int64),
        )
        if self.sources != "model":
            pool.add_paths(np.arange(len(requests)), trees, np.full(len(requests), _ANY))
        return pool, RecordedChoices(requests, limits.children)

    def paths(self, decision: Decision, candidates: Candidates) -> list[CandidateRow]:
        """Of each request; see `Memory`."""
        of = candidates
        return [
            CandidateRow(
                of.token[row, :size],
                of.parent[row, :size],
                of.depth[row, :size],
                of.path_prob[row, :size],
            )
            for row, size in enumerate(of.size.tolist())
        ]

    def _scores(self, requests: tuple[Drafted, ...], limits: GrowthLimits) -> EvidenceScores:
        evidence = self._acceptance.evidence
        assert evidence is not None
        siblings = self._acceptance.sibling_scores(_slots(requests)) if self._calibrates else None
        is_chain = limits.width == limits.children == 1
        chain_only = np.array([is_chain or _is_chain_only(request) for request in requests])
        return EvidenceScores(evidence.weights, siblings, _is_sampled(requests), chain_only)

    def learn(
        self,
        decision: Decision,
        candidates: Candidates,
        num_draft_nodes: _Nodes,
        emitted: Mapping[str, Continuation],
    ) -> None:
        """Learn from what a step emitted.

        Args:
            candidates: of the step, whether they are verified or not.
            num_draft_nodes: [num_reqs] how many of the best are verified.
            emitted: by request, the bonus token included.
        """
        evidence, of, said = self._acceptance.evidence, candidates, candidates.evidence
        assert evidence is not None
        assert said is not None
        texts = [emitted.get(request.request, ()) for request in decision.requests]
        length = np.array([len(text) for text in texts], np.int64)
        text = np.full((len(texts), int(length.max()) + 1), -1, np.int64)
        for row, tokens in enumerate(texts):
            text[row, : len(tokens)] = tokens
        is_sampled = _is_sampled(decision.requests)
        labels = judged_children(
            *(of.token, of.parent, of.depth, of.source, said.columns, of.size),
            *(text, length, is_sampled),
        )
        evidence.observe(*labels)
        slots = _slots(decision.requests)
        self._learn_of_siblings(candidates.select(num_draft_nodes), texts, slots)

    def _learn_of_siblings(
        self, trees: TreeBatch, texts: list[Continuation], slots: npt.NDArray[np.int64]
    ) -> None:
        """Which of the nodes that are verified the texts took, as far as these go."""
        is_judged = trees.is_node() & (trees.path_prob > 0)
        path = np.full((len(texts), 1 + max(map(len, texts))), -1, np.int64)
        path[:, 0] = 0
        for row, tokens in enumerate(texts):
            node = 0
            for place, token in enumerate(tokens):
                takes = is_judged[row] & (trees.parent[row] == node) & (trees.token[row] == token)
                if not takes.any():
                    break
                node = path[row, place + 1] = int(takes.argmax())
            else:  # nobody knows what comes after the last one
                is_judged[row] &= trees.parent[row] != node
        columns = trees.parent, trees.depth, trees.rank, trees.source, trees.draft_prob
        req, share, depth, rank, source, taken = judged_nodes(*columns, is_judged, path)
        self._acceptance.observe(share, depth, rank, source, taken, slots[req])


class RecordedChoices:
    """Names again what the drafter has named, wherever it was asked."""

    name, is_one_shot = "recorded", False

    def __init__(self, requests: tuple[Drafted, ...], children: int) -> None:
        """Args:
        requests: of the step.
        children: most choices of a node; later ones are not named.
        """
        self._children = children
        self._choices = [_choices(request, children) for request in requests]
        self.lacks = False  # whether anybody has asked for what is not known

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        """Add the choices after the frontier's nodes; see `CandidateSource`."""
        token = np.full((len(frontier.req), self._children), -1, np.int64)
        prob = np.zeros(token.shape, np.float32)
        of = pool.candidates
        rows = zip(frontier.req.tolist(), frontier.node.tolist(), strict=True)
        for row, (req, node) in enumerate(rows):
            path = _path(of.token[req], of.parent[req], node)
            for choice, named in enumerate(self._choices[req].get(path, ())):
                token[row, choice], prob[row, choice] = named
        num_choices = (prob > 0).sum(axis=1)
        self.lacks |= bool((num_choices < self._children).any())
        some = num_choices > 0
        if some.any():
            pool.add_children(frontier.req[some], frontier.node[some], token[some], prob[some])
        return int(np.count_nonzero(some))


def _choices(request: Drafted, children: int) -> dict[_Path, list[tuple[int, float]]]:
    """(token, probability) of what the drafter named, the likeliest first, by the path before it."""
    choices: dict[_Path, list[tuple[int, float]]] = {}
    if (said := request.said) is None:
        return choices
    for node in np.argsort(said.model_rank, kind="stable").tolist():
        if said.model_prob[node] > 0:
            path = _path(request.token, request.parent, int(request.parent[node]))
            named = choices.setdefault(path, [])
            named.append((int(request.token[node]), float(said.model_prob[node])))
    return {path: named[:children] for path, named in choices.items()}


def _path(token: npt.NDArray[np.int64], parent: npt.NDArray[np.integer], node: int) -> _Path:
    path = []
    while node > 0:
        path.append(int(token[node]))
        node = int(parent[node])
    return tuple(path[::-1])


def _ngrams(requests: tuple[Drafted, ...]) -> Continuations:
    """The n-grams of requests, as they were looked up."""
    nodes = [
        np.flatnonzero(request.said.match_len) if request.said is not None else np.zeros(0, np.int64)
        for request in requests
    ]
    shape = (len(requests), max(1, *map(len, nodes)) if nodes else 1)
    token, share = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
    parent, depth, rank, match_len, count, stores = (np.zeros(shape, np.int32) for _ in range(6))
    for row, (request, chosen) in enumerate(zip(requests, nodes, strict=True)):
        if (said := request.said) is None:
            continue
        size = len(chosen)
        place = np.full(len(request.token), -1)
        place[chosen] = np.arange(size)
        parent[row, :size] = place[request.parent[chosen]]
        for column, recorded in (
            *((token, request.token), (depth, request.depth), (share, said.share)),
            *((match_len, said.match_len), (count, said.count)),
        ):
            column[row, :size] = recorded[chosen]
    num = np.array([len(chosen) for chosen in nodes], np.int32)
    return Continuations(token, parent, depth, rank, match_len, count, stores, share, num)


def _slots(requests: tuple[Drafted, ...]) -> npt.NDArray[np.int64]:
    """[num_reqs] of the calibration."""
    return np.array([_COUPLED if each.is_coupled else 0 for each in requests], np.int64)


def _is_sampled(requests: tuple[Drafted, ...]) -> npt.NDArray[np.bool_]:
    return np.array([each.said is not None and each.said.is_sampled for each in requests])


def _is_chain_only(request: Drafted) -> bool:
    """Whether siblings were ruled out, as they are for whom branches would not do."""
    siblings = request.draft_prob[request.rank > 0]
    return bool(len(siblings)) and not siblings.any()
