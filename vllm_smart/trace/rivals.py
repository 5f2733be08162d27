"""What others would have verified of recorded candidates: their rules for choosing among n-grams.

Each rule is told by what was recorded: n-grams with the length of their longest match and how often
they occurred, cut at `ngram.max_nodes`; and the drafter's choices, as far as it was asked. Nothing here
is calibrated, for the rules are not.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from vllm_smart.config import MAX_NODE_BUDGET, GrowthLimits
from vllm_smart.errors import TraceError
from vllm_smart.profiling import CostTable
from vllm_smart.scheduler.sssd import SssdPolicy
from vllm_smart.trace.records import Drafted, Said

_SURE_MATCH = 4  # from which either_or takes the n-gram
_LEAST_PROB = 0.1  # of a path of the suffix rule
_SSSD_DEPTH, _SSSD_CHILDREN, _SSSD_MATCH = 6, 5, 4

# The nodes that a rule verifies of a request, parents first, given how many requests there are.
Rule = Callable[[Drafted, Said, int], list[int]]


def make_rule(name: str, table: CostTable) -> Rule:
    """A rule by its name.

    Args:
        name: `fixed_ngram[:N]`, `sssd[:N]`, `suffix[:N]` or `either_or[:K]`; the number is that of the
            most nodes.
        table: costs, by which sssd without a number decides.

    Raises:
        TraceError: there is no such rule.
    """
    kind, _, size = name.partition(":")
    if kind not in _RULES or (size and not (size.isdecimal() and 0 < int(size) <= MAX_NODE_BUDGET)):
        raise TraceError(
            f"--against {name!r} is no rule. Allowed: {', '.join(_RULES)}; each also with the most "
            "nodes of a request, as in either_or:5."
        )
    return _RULES[kind](int(size) if size else None, table)


def _fixed_ngram(size: int | None, table: CostTable) -> Rule:
    """The same number of n-grams for every request: those of the largest share, along their paths."""

    def choose(of: Drafted, said: Said, num_requests: int) -> list[int]:
        return _Ngrams(of, said).best(size or 8, lambda node, above: above * float(said.share[node]))

    return choose


def _sssd(size: int | None, table: CostTable) -> Rule:
    """SSSD's order for the request's own text, and its budget: see `scheduler.sssd`.

    A node below the root counts for 0.6 of how often it occurred, a deeper one for 0.6 + 0.1 m of it
    after a match of m <= 4 tokens; at most 6 levels, and 5 children of a node.
    """
    limits = GrowthLimits(node_budget=MAX_NODE_BUDGET, depth=1, width=1, children=1)
    policy = SssdPolicy(limits, table, None)

    def choose(of: Drafted, said: Said, num_requests: int) -> list[int]:
        ngrams = _Ngrams(of, said, _SSSD_CHILDREN)
        matched = np.zeros(len(of.token))

        def score(node: int, above: float) -> float:
            parent, depth = int(of.parent[node]), int(of.depth[node])
            matched[node] = matched[parent] or min(int(said.match_len[node]), _SSSD_MATCH)
            kept = 0.6 if depth == 1 else 0.6 + 0.1 * matched[node]
            return above * ngrams.ratio(node) * kept if depth <= _SSSD_DEPTH else 0.0

        return ngrams.best(size or policy.num_nodes(num_requests), score)

    return choose


def _suffix(size: int | None, table: CostTable) -> Rule:
    """Arctic's path: after the longest match, as long as that at most, while it is likely enough.

    Each node is the most frequent one of those with the longest match. Its probability is its share of
    their occurrences.
    """

    def choose(of: Drafted, said: Said, num_requests: int) -> list[int]:
        path = _Ngrams(of, said).longest()
        if not path:
            return []
        probs = np.cumprod([prob for _, prob in path])
        most = min(size or MAX_NODE_BUDGET, int(said.match_len[path[0][0]]))
        return [node for node, _ in path[:most]][: int(np.count_nonzero(probs >= _LEAST_PROB))]

    return choose


def _either_or(size: int | None, table: CostTable) -> Rule:
    """A chain of n-grams where 4 tokens or more have matched, or else the drafter's."""

    def choose(of: Drafted, said: Said, num_requests: int) -> list[int]:
        most, ngrams = size or 5, [node for node, _ in _Ngrams(of, said).longest()]
        if ngrams and said.match_len[ngrams[0]] >= _SURE_MATCH:
            return ngrams[:most]
        path: list[int] = []
        node = 0
        first = np.flatnonzero((said.model_prob > 0) & (said.model_rank == 0))
        after = dict(zip(of.parent[first].tolist(), first.tolist(), strict=True))
        while node in after and len(path) < most:
            node = after[node]
            path.append(node)
        return path

    return choose


_RULES: dict[str, Callable[[int | None, CostTable], Rule]] = {
    "fixed_ngram": _fixed_ngram,
    "sssd": _sssd,
    "suffix": _suffix,
    "either_or": _either_or,
}


class _Ngrams:
    """The n-grams among the candidates of a request.

    Attributes:
        children: of each node, those of the largest share first.
    """

    def __init__(self, of: Drafted, said: Said, most_children: int = MAX_NODE_BUDGET) -> None:
        self._said, self._parent = said, of.parent
        self.children: dict[int, list[int]] = defaultdict(list)
        nodes = np.flatnonzero(said.match_len)
        for node in nodes[np.argsort(-said.share[nodes], kind="stable")].tolist():
            siblings = self.children[int(of.parent[node])]
            if len(siblings) < most_children:
                siblings.append(node)

    def ratio(self, node: int) -> float:
        """How often a node occurred, of its siblings and itself."""
        siblings = self.children[int(self._parent[node])]
        return float(self._said.count[node] / self._said.count[siblings].sum())

    def longest(self) -> list[tuple[int, float]]:
        """The path of the longest match, and each node's share of what occurred after it."""
        path: list[tuple[int, float]] = []
        node, said = 0, self._said
        while children := self.children.get(node):
            longest = said.match_len[children].max()
            among = [child for child in children if said.match_len[child] == longest]
            node = max(among, key=lambda child: int(said.count[child]))
            path.append((node, float(said.count[node] / said.count[among].sum())))
        return path

    def best(self, most: int, score: Callable[[int, float], float]) -> list[int]:
        """The tree that starts at the root and always goes on with the best candidate.

        Args:
            most: nodes.
            score: of a node, given its parent's; 0 = it is none. The root's is 1.
        """
        chosen: list[int] = []
        open_nodes = [(-1.0, 0)]
        while open_nodes and len(chosen) <= most:
            above, node = heapq.heappop(open_nodes)
            chosen.append(node)
            for child in self.children.get(node, ()):
                if (prob := score(child, -above)) > 0:
                    heapq.heappush(open_nodes, (-prob, child))
        return chosen[1:]
