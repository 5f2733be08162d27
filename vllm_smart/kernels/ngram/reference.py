"""The same in plain Python: every place of a text is looked at, and trees grow from a heap."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from vllm_smart.kernels.ngram.cpu.chains import FEW, SOME
from vllm_smart.kernels.ngram.cpu.trees import ELSEWHERE, MOST_WEIGHT, OWN_STORE, RELIABILITY


@dataclass(frozen=True)
class Occurrence:
    """Tokens that agree, whose text it is, and the tokens that follow."""

    match: int
    store: int
    ahead: tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """As the columns of `trees.build_trees`."""

    token: int
    parent: int
    depth: int
    rank: int
    match_len: int
    count: int
    stores: int
    share: float


def is_token(token: int) -> bool:
    """Whether it is none of the negative ones that stand between texts."""
    return token >= 0


def same_backwards(
    text: Sequence[int], at: int, context: Sequence[int], most: int, barriers: Sequence[int] = ()
) -> int:
    """How many tokens agree, backwards from text[at] and from the context's last; barriers never do."""
    same = 0
    while same < min(most, len(context), at + 1):
        token = context[-1 - same]
        if token != text[at - same] or token < 0 or token in barriers:
            break
        same += 1
    return same


def find_in_text(
    text: Sequence[int],
    context: Sequence[int],
    max_match: int,
    min_match: int,
    most: int,
    max_depth: int,
    store: int = 1,
    barriers: Sequence[int] = (),
) -> list[Occurrence]:
    """What `chains.find_in_chains` finds if no chain is longer than it follows them."""
    places = [at for at in range(len(text) - 2, -1, -1) if text[at + 1] >= 0]
    length = {at: same_backwards(text, at, context, max_match, barriers) for at in places}
    taken: list[int] = []
    below = max_match + 1
    for gram in (4, 2, 1):
        if gram > max_match:
            continue
        quota = most if gram > 1 else min(most, SOME) if len(taken) < FEW else 0
        these = [at for at in places if gram <= length[at] < below]
        taken += these[: max(quota - len(taken), 0)]
        below = gram
    return [
        Occurrence(length[at], store, tuple(takewhile(is_token, text[at + 1 : at + 1 + max_depth])))
        for at in taken
        if length[at] >= min_match
    ]


def weight_of(each: Occurrence, depth: int) -> float:
    """What an occurrence says about the children of a node at `depth`."""
    weight = 2.0 ** min(each.match + depth, MOST_WEIGHT)
    return float(weight if each.store == OWN_STORE else ELSEWHERE * weight)


def build_tree(
    found: Sequence[Occurrence], max_nodes: int, max_depth: int, barriers: Sequence[int] = ()
) -> list[Node]:
    """As `trees.build_trees`."""
    nodes: list[Node] = []
    heap: list[tuple[float, int, Node, list[Occurrence]]] = []
    pushed = 0

    def expand(members: Sequence[Occurrence], parent: int, depth: int, prob: float) -> None:
        nonlocal pushed
        children: dict[int, list[Occurrence]] = {}
        for each in members:
            if depth < min(len(each.ahead), max_depth):
                token = each.ahead[depth]
                if token >= 0 and token not in barriers:
                    children.setdefault(token, []).append(each)
        if not children:
            return
        weight = {token: sum(weight_of(each, depth) for each in own) for token, own in children.items()}
        total = sum(weight.values())
        longest = max(o.match + depth for c in children.values() for o in c)
        reliable = prob * float(RELIABILITY[longest])
        for rank, token in enumerate(sorted(children, key=lambda token: -weight[token])):
            own = children[token]
            stores = 0
            for each in own:
                stores |= each.store
            match_len, share = max(o.match + depth for o in own), weight[token] / total
            node = Node(token, parent, depth + 1, rank, match_len, len(own), stores, share)
            heapq.heappush(heap, (-reliable * share, pushed, node, own))
            pushed += 1

    expand(found, -1, 0, 1.0)
    while heap and len(nodes) < max_nodes:
        prob, _, node, members = heapq.heappop(heap)
        nodes.append(node)
        expand(members, len(nodes) - 1, node.depth, -prob)
    return nodes
