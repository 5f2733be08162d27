"""The loops over candidates of several sources, compiled. See the package for what is computed."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

# In this file, as numba's cache notices changes of no other.
NUM_FEATURES = 21
MODEL, NGRAM, BOTH, GRAMMAR = 0, 1, 2, 3  # as the package has them
_SMALLEST = 1e-4  # a probability this far from 0 or 1 is as extreme as it gets


@numba.njit(cache=True)
def _logit(prob: float) -> Any:
    clipped = min(max(prob, _SMALLEST), 1.0 - _SMALLEST)
    return np.log(clipped / (1.0 - clipped))


@numba.njit(cache=True)
def _children_of(parents: _Array, size: int, node: int, into: _Array) -> int:
    count = 0
    for column in range(node + 1, size):
        if parents[column] == node:
            into[count] = column
            count += 1
    return count


@numba.njit(cache=True)
def _features(
    x: _Array,
    evidence: tuple[_Array, ...],
    of: int,
    children: _Array,
    count: int,
    depth: int,
    is_sampled: bool,
    is_expanded: bool,
) -> None:
    """Write [count, NUM_FEATURES] into `x`: of the children of one node of request `of`.

    If the node is not `is_expanded`, what a drafter says of them is left out.
    """
    model_prob, model_rank, match_len, counts, share = evidence[:5]
    named, longest, num_ngrams = 0.0, 0, 0
    for i in range(count):
        child = children[i]
        named += model_prob[of, child]
        if match_len[of, child] > 0:
            num_ngrams += 1
            longest = max(longest, match_len[of, child])
    for i in range(count):
        child = children[i]
        for feature in range(NUM_FEATURES):
            x[i, feature] = 0.0
        prob, length = model_prob[of, child], match_len[of, child]
        x[i, 0] = 1.0
        if is_expanded and prob > 0:
            x[i, 1], x[i, 2] = 1.0, _logit(prob)
            x[i, 3] = 1.0 if model_rank[of, child] > 0 else 0.0
        if length > 0:
            x[i, 4], x[i, 5] = 1.0, np.log(1.0 + length)
            x[i, 6], x[i, 7] = _logit(share[of, child]), np.log(1.0 * counts[of, child])
            x[i, 8] = x[i, 1]
        if is_expanded:
            x[i, 9] = np.log(0.01 + max(0.0, 1.0 - named))
            x[i, 10] = x[i, 4] * (1.0 - x[i, 1])
        if length == 0:
            x[i, 11], x[i, 12] = np.log(1.0 + longest), np.log(1.0 + num_ngrams)
        x[i, 13] = np.log(1.0 * depth)
        if is_sampled:
            x[i, 14], x[i, 15], x[i, 16] = 1.0, x[i, 2], x[i, 5]
        if x[i, 8]:
            x[i, 17], x[i, 18], x[i, 19], x[i, 20] = x[i, 2], x[i, 5], x[i, 6], x[i, 3]


@numba.njit(cache=True)
def add_paths(
    pool: tuple[_Array, ...],
    evidence: tuple[_Array, ...],
    size: _Array,
    req: _Array,
    tokens: _Array,
    parents: _Array,
    match_lens: _Array,
    counts: _Array,
    shares: _Array,
    num: _Array,
    max_depth: _Array,
) -> tuple[_Array, _Array]:
    """Append trees of n-grams below roots that have no children yet.

    Args:
        pool: token, parent, depth, rank, source, draft_prob, path_prob.
        evidence: the columns of `Evidence`.
        size: [num_reqs] columns in use, advanced.
        req: [num_rows] requests.
        tokens, parents, match_lens, counts, shares: [num_rows, most] of each tree, parents first; -1 is
            the root.
        num: [num_rows] nodes of each.
        max_depth: [num_rows] deeper nodes are left out.

    Returns:
        [num_parents] request and column of each node that has children now, by request.
    """
    most = len(req) * tokens.shape[1]
    parent_req, parent_node, num_parents = np.empty(most, np.int64), np.empty(most, np.int64), 0
    place, is_parent = np.empty(tokens.shape[1], np.int64), np.empty(tokens.shape[1] + 1, np.bool_)
    for row in range(len(req)):
        of = req[row]
        is_parent[:] = False
        for node in range(num[row]):
            above = parents[row, node]
            above = 0 if above < 0 else place[above]
            place[node] = -1
            if above < 0 or pool[2][of, above] >= max_depth[row]:
                continue
            at = size[of]
            size[of] += 1
            place[node] = at
            pool[0][of, at] = tokens[row, node]
            pool[1][of, at] = above
            pool[2][of, at] = pool[2][of, above] + 1
            pool[4][of, at] = NGRAM
            evidence[2][of, at] = match_lens[row, node]
            evidence[3][of, at] = counts[row, node]
            evidence[4][of, at] = shares[row, node]
            if not is_parent[above]:
                is_parent[above] = True
                parent_req[num_parents], parent_node[num_parents] = of, above
                num_parents += 1
    return parent_req[:num_parents], parent_node[:num_parents]


@numba.njit(cache=True)
def add_choices(
    pool: tuple[_Array, ...],
    evidence: tuple[_Array, ...],
    size: _Array,
    req: _Array,
    parent: _Array,
    token: _Array,
    prob: _Array,
) -> None:
    """Add what a drafter names after some nodes; a token that is among the children already stays one.

    Args:
        pool, evidence, size: as for `add_paths`.
        req, parent: [num_rows] the nodes expanded.
        token, prob: [num_rows, choices], the likeliest first; 0 rules a choice out.
    """
    tokens, parents, depths, _, sources = pool[:5]
    children = np.empty(tokens.shape[1], np.int64)
    for row in range(len(req)):
        of, above = req[row], parent[row]
        count = _children_of(parents[of], size[of], above, children)
        evidence[6][of, above] = True
        for choice in range(token.shape[1]):
            if not prob[row, choice] > 0:
                continue
            at = -1
            for i in range(count):
                if tokens[of, children[i]] == token[row, choice]:
                    at = children[i]
                    sources[of, at] = BOTH
                    break
            if at < 0:
                at = size[of]
                size[of] += 1
                tokens[of, at], parents[of, at] = token[row, choice], above
                depths[of, at], sources[of, at] = depths[of, above] + 1, MODEL
            evidence[0][of, at], evidence[1][of, at] = prob[row, choice], choice


@numba.njit(cache=True)
def rank_children(
    pool: tuple[_Array, ...],
    evidence: tuple[_Array, ...],
    size: _Array,
    req: _Array,
    parent: _Array,
    weights: _Array,
    is_sampled: _Array,
    chain_only: _Array,
    calibrates: bool,
    row_of: _Array,
    first: _Array,
    intercept: _Array,
    slope: _Array,
    offset: _Array,
) -> None:
    """Say how likely the children of some nodes are, and rank them; then, how likely all paths are.

    Args:
        pool, evidence, size: as for `add_paths`.
        req, parent: [num_rows] nodes whose children are new, by request.
        weights: [NUM_FEATURES] of the regression.
        is_sampled, chain_only: [num_reqs] bool.
        calibrates: whether the regressions of siblings, below, have a say.
        row_of: [sources, depths, ranks] which regression a sibling takes; the last stands for more.
        first: [num_reqs] from where on they are counted.
        intercept, slope: [num_regressions].
        offset: [num_reqs] added to the intercepts.
    """
    tokens, parents, depths, ranks, sources, draft_probs, path_probs = pool
    accepted = evidence[5]
    capacity = tokens.shape[1]
    children = np.empty(capacity, np.int64)
    x = np.empty((capacity, NUM_FEATURES))
    last_source, last_depth, last_rank = row_of.shape[0] - 1, row_of.shape[1] - 1, row_of.shape[2] - 1
    for row in range(len(req)):
        of, above = req[row], parent[row]
        count = _children_of(parents[of], size[of], above, children)
        depth = depths[of, above] + 1
        _features(x, evidence, of, children, count, depth, is_sampled[of], evidence[6][of, above])
        prob = np.empty(count)
        for i in range(count):
            z = 0.0
            for feature in range(NUM_FEATURES):
                z += weights[feature] * x[i, feature]
            prob[i] = 1.0 / (1.0 + np.exp(-z))
        left, rejected, before = 1.0, 1.0, 1.0
        order = np.argsort(-prob, kind="mergesort")
        for rank in range(count):
            child = children[order[rank]]
            p = min(prob[order[rank]], left)
            ranks[of, child] = rank
            if sources[of, child] == GRAMMAR:  # there is no other
                draft_probs[of, child] = accepted[of, child] = 1.0
                continue
            if p < _SMALLEST or (rank > 0 and chain_only[of]):
                draft_probs[of, child] = accepted[of, child] = 0.0
                continue
            asked = min(p / left, 1.0 - _SMALLEST)
            if calibrates:
                at = (
                    first[of]
                    + row_of[
                        min(sources[of, child], last_source),
                        min(depth, last_depth),
                        min(rank, last_rank),
                    ]
                )
                z = intercept[at] + offset[of] + slope[at] * _logit(asked)
                asked = 1.0 / (1.0 + np.exp(-z))
            before = min(rejected * asked, before)
            draft_probs[of, child], accepted[of, child] = p, before
            rejected *= 1.0 - asked
            left -= p
    for row in range(len(req)):
        of = req[row]
        if row and req[row - 1] == of:
            continue
        for column in range(1, size[of]):
            path_probs[of, column] = path_probs[of, parents[of, column]] * accepted[of, column]


@numba.njit(cache=True)
def judged_children(
    token: _Array,
    parent: _Array,
    depth: _Array,
    source: _Array,
    evidence: tuple[_Array, ...],
    size: _Array,
    text: _Array,
    length: _Array,
    is_sampled: _Array,
) -> tuple[_Array, _Array]:
    """Every child of a node that the text has passed, with whether the text went on with it.

    Where a drafter was asked, n-grams are judged once more as if it had not been: what they are worth
    alone must be known before it rests. What a grammar forces is no label: nobody had to be asked.

    Args:
        token, parent, depth, source: [num_reqs, capacity] of candidates.
        evidence: the columns of `Evidence`.
        size: [num_reqs] columns in use.
        text: [num_reqs, most] tokens that followed the roots.
        length: [num_reqs] how many of them.
        is_sampled: [num_reqs] bool.

    Returns:
        [num_judged, NUM_FEATURES] features and [num_judged] bool.
    """
    num_reqs, capacity = token.shape
    most = 0
    for of in range(num_reqs):
        most += 2 * size[of]
    x, is_next = np.empty((most, NUM_FEATURES)), np.empty(most, np.bool_)
    children = np.empty(capacity, np.int64)
    at = 0
    for of in range(num_reqs):
        node = 0
        for place in range(length[of]):
            count = _children_of(parent[of], size[of], node, children)
            if not count:
                break
            if source[of, children[0]] == GRAMMAR:
                if token[of, children[0]] != text[of, place]:
                    break
                node = children[0]
                continue
            _features(
                x[at:],
                evidence,
                of,
                children,
                count,
                depth[of, node] + 1,
                is_sampled[of],
                evidence[6][of, node],
            )
            chosen = -1
            for i in range(count):
                is_next[at + i] = token[of, children[i]] == text[of, place]
                if is_next[at + i]:
                    chosen = children[i]
            at += count
            if evidence[6][of, node]:
                alone = 0
                for i in range(count):
                    if evidence[2][of, children[i]] > 0:
                        children[alone] = children[i]
                        is_next[at + alone] = token[of, children[i]] == text[of, place]
                        alone += 1
                below = depth[of, node] + 1
                _features(x[at:], evidence, of, children, alone, below, is_sampled[of], False)
                at += alone
            if chosen < 0:
                break
            node = chosen
    return x[:at], is_next[:at]
