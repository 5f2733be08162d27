"""What a drafter says and what the target takes of it, drawn from what is known of a real pair.

A node that is expanded draws one expansion: the probabilities that the draft gives to its children,
and which of them the target takes. Expansions are drawn among those of the same depth after nodes of
the same confidence. What is drawn depends on the request and the position alone, so all policies are
told the same about the same place of a text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_smart.config import MAX_CHILDREN
from vllm_smart.kernels.grow import NUM_CONFIDENCES
from vllm_smart.kernels.grow.cpu import confidence_of
from vllm_smart.proposer import CandidatePool, Frontier

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]

NUM_DEPTHS = 5  # of expansions; deeper ones are drawn from the last
_NUM_CELLS = NUM_DEPTHS * NUM_CONFIDENCES
_FEWEST = 16  # expansions of a cell; with fewer, those of other depths are drawn, too
# Tokens of candidates: what the target says, and what it does not, by rank.
TARGETS_TOKEN = 1
_OTHER_TOKENS = 2 + np.arange(MAX_CHILDREN)


@dataclass(frozen=True)
class Expansions:
    """Of a drafter, sorted by cells: depth, then confidence of the node expanded."""

    draft_prob: _Floats  # [num_expansions, MAX_CHILDREN] of the children, given the parent; best first
    taken: _Ints  # [num_expansions] rank of the child that the target takes, -1 = none of them
    start: _Ints  # [_NUM_CELLS + 1] first expansion of each cell

    @classmethod
    def of(cls, depth: _Ints, confidence: _Ints, draft_prob: _Floats, taken: _Ints) -> "Expansions":
        """Sort expansions into cells.

        Args:
            depth: [num_expansions] of the children, from 1.
            confidence: [num_expansions] of the node expanded.
            draft_prob, taken: as above; at least one.
        """
        parts = []
        by_depth = np.minimum(depth, NUM_DEPTHS) - 1
        for cell in range(_NUM_CELLS):
            of_depth, of_confidence = divmod(cell, NUM_CONFIDENCES)
            alike = confidence == of_confidence
            choices = (np.flatnonzero(alike & (by_depth == of_depth)), np.flatnonzero(alike))
            found = next((chosen for chosen in choices if len(chosen) >= _FEWEST), None)
            parts.append(np.arange(len(taken)) if found is None else found)
        order = np.concatenate(parts)
        start = np.concatenate(([0], np.cumsum([len(part) for part in parts])))
        return cls(np.ascontiguousarray(draft_prob[order], np.float32), taken[order], start)

    def draw(self, depth: int, confidence: _Ints, chance: npt.NDArray[np.float64]) -> _Ints:
        """[num_rows] expansions by their confidence and a chance in [0, 1) of each."""
        cell = (min(depth, NUM_DEPTHS) - 1) * NUM_CONFIDENCES + confidence
        start = self.start[cell]
        drawn: _Ints = start + (chance * (self.start[cell + 1] - start)).astype(np.int64)
        return drawn


class SimulatedSource:
    """Candidates of one step; implements `CandidateSource`."""

    name, is_one_shot = "model", False

    def __init__(
        self, expansions: Expansions, children: int, seed: int, requests: _Ints, position: _Ints
    ) -> None:
        """Args:
        expansions: to draw from.
        children: of each node.
        seed: of the text.
        requests: [num_reqs] numbers of the requests.
        position: [num_reqs] of their roots.
        """
        self._expansions, self._children, self._seed = expansions, children, seed
        self._requests, self._position = requests, position

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        """Add the children of the frontier's nodes; see `CandidateSource`."""
        req, node, of = frontier.req, frontier.node, pool.candidates
        depth = pool.num_levels + 1
        # A node is on the target's path if all tokens down to it are the target's.
        is_on_path = (node == 0) | (of.token[req, node] == TARGETS_TOKEN)
        key = np.where(is_on_path, 0, node)
        chance = chance_of(self._seed, self._requests[req], self._position[req] + depth, key)
        confidence = confidence_of(of.path_prob, of.parent, req, node)
        drawn = self._expansions.draw(depth, confidence, chance)
        token = np.tile(_OTHER_TOKENS[: self._children], (len(req), 1))
        taken = self._expansions.taken[drawn]
        hits = np.flatnonzero(is_on_path & (taken >= 0) & (taken < self._children))
        token[hits, taken[hits]] = TARGETS_TOKEN
        prob = self._expansions.draft_prob[drawn, : self._children]
        pool.add_children(req, node, token, prob)
        return len(req)


def chance_of(seed: int, *keys: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[n] numbers in [0, 1) that depend on the seed and on [n] keys alone (splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = np.full(len(keys[0]), seed, np.uint64)
        for key in keys:
            mixed = (mixed ^ key.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
    return np.ldexp((mixed >> np.uint64(11)).astype(np.float64), -53)
