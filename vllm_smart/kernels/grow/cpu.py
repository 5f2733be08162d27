"""The loops over candidates, compiled: a step has a few dozen of them on arrays of a few numbers.

All arrays of a pool are [num_reqs, capacity]; a candidate's id is its column.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

# Acceptance of a node given its parent, in classes: how sure its drafter was there tells how sure it
# will be of the node's children. In this file, as numba's cache notices changes of no other.
CONFIDENCE_EDGES = np.array([0.25, 0.5, 0.75, 0.9], np.float32)
NUM_CONFIDENCES = len(CONFIDENCE_EDGES) + 1
GRAMMAR = 3  # the source, as `kernels.evidence` has it


@numba.njit(cache=True)
def confidence_of(path_prob: _Array, parent: _Array, req: _Array, node: _Array) -> _Array:
    """[num_rows] classes of nodes; roots are of the highest."""
    result = np.empty(len(req), np.int64)
    for row in range(len(req)):
        of, at = req[row], node[row]
        if parent[of, at] < 0:
            result[row] = NUM_CONFIDENCES - 1
            continue
        above = path_prob[of, parent[of, at]]
        count = 0
        for edge in CONFIDENCE_EDGES:
            count += path_prob[of, at] >= edge * above
        result[row] = count
    return result


@numba.njit(cache=True)
def unnamed_share(path_prob: _Array, parent: _Array, req: _Array, node: _Array) -> _Array:
    """[num_rows] how likely, after each node, what comes is none of its children so far."""
    named = np.zeros_like(path_prob)
    for of in range(len(parent)):
        for child in range(1, parent.shape[1]):
            if parent[of, child] >= 0:
                named[of, parent[of, child]] += path_prob[of, child]
    share = np.ones(len(req), np.float32)
    for row in range(len(req)):
        of, at = req[row], node[row]
        if path_prob[of, at] > 0:
            share[row] = max(0.0, 1.0 - named[of, at] / path_prob[of, at])
    return share


@numba.njit(cache=True)
def add_level(
    pool: tuple[_Array, ...],
    size: _Array,
    req: _Array,
    parent: _Array,
    token: _Array,
    draft_prob: _Array,
    accepted: _Array,
    source: int,
) -> _Array:
    """Append the children of some nodes.

    Args:
        pool: token, parent, depth, rank, source, draft_prob, path_prob.
        size: [num_reqs] columns in use, advanced.
        req: [num_rows] ascending.
        parent: [num_rows] the nodes expanded.
        token, draft_prob: [num_rows, children].
        accepted: [num_rows, children] acceptance if the parent is; only where draft_prob > 0.
        source: of all of them.

    Returns:
        [num_rows, children] ids of the children.
    """
    tokens, parents, depths, ranks, sources, draft_probs, path_probs = pool
    num_rows, children = token.shape
    node = np.empty((num_rows, children), np.int64)
    for row in range(num_rows):
        of = req[row]
        above = path_probs[of, parent[row]]
        for rank in range(children):
            at = size[of]
            size[of] += 1
            node[row, rank] = at
            tokens[of, at] = token[row, rank]
            parents[of, at] = parent[row]
            depths[of, at] = depths[of, parent[row]] + 1
            ranks[of, at] = rank
            sources[of, at] = source
            draft_probs[of, at] = draft_prob[row, rank]
            if draft_prob[row, rank] > 0:
                path_probs[of, at] = above * accepted[row, rank]
    return node


@numba.njit(cache=True)
def level_masses(
    parent: _Array,
    depth: _Array,
    rank: _Array,
    source: _Array,
    path_prob: _Array,
    size: _Array,
    most_children: int,
) -> tuple[_Array, _Array]:
    """What each level has promised, but for what grammars force.

    Args:
        parent, depth, rank, source, path_prob: of candidates.
        size: [num_reqs] columns in use.
        most_children: of a node.

    Returns:
        By level, the roots' children first, and by the confidence of the nodes expanded:
        [levels, NUM_CONFIDENCES] their path probabilities summed, and
        [levels, NUM_CONFIDENCES, most_children] those of their children, by rank.
    """
    levels = depth.max() if depth.size else 0
    parent_mass = np.zeros((levels, NUM_CONFIDENCES), np.float32)
    child_mass = np.zeros((levels, NUM_CONFIDENCES, most_children), np.float32)
    one_req, one_node = np.empty(1, np.int64), np.empty(1, np.int64)
    for of in range(len(size)):
        before, confidence = -1, 0
        for node in range(1, size[of]):
            above, level = parent[of, node], depth[of, node] - 1
            if source[of, node] == GRAMMAR:
                continue
            if above != before:  # siblings lie side by side
                before, one_req[0], one_node[0] = above, of, above
                confidence = confidence_of(path_prob, parent, one_req, one_node)[0]
                parent_mass[level, confidence] += path_prob[of, above]
            if rank[of, node] < most_children:
                child_mass[level, confidence, rank[of, node]] += path_prob[of, node]
    return parent_mass, child_mass


@numba.njit(cache=True)
def added_masses(
    parent: _Array,
    depth: _Array,
    rank: _Array,
    path_prob: _Array,
    size: _Array,
    is_expanded: _Array,
    is_added: _Array,
    most_children: int,
) -> tuple[_Array, _Array]:
    """What each level of a drafter has added to candidates that were there without it.

    Whoever is expanded counts by what its other children leave: where n-grams name most of what comes,
    there is little to add, which tells nothing of nodes after which they name nothing.

    Args:
        parent, depth, path_prob, size: as for `level_masses`.
        rank: of each among the drafter's choices after its parent.
        is_expanded: [num_reqs, capacity] nodes after which the drafter was asked.
        is_added: [num_reqs, capacity] candidates that nobody else has named.
        most_children: of a node.

    Returns:
        As `level_masses`, parents without what their other children promise.
    """
    levels = depth.max() if depth.size else 0
    parent_mass = np.zeros((levels, NUM_CONFIDENCES), np.float32)
    child_mass = np.zeros((levels, NUM_CONFIDENCES, most_children), np.float32)
    confidence = np.zeros(parent.shape[1], np.int64)
    named = np.empty(parent.shape[1], np.float32)  # after each node, without the drafter
    one_req, one_node = np.empty(1, np.int64), np.empty(1, np.int64)
    for of in range(len(size)):
        named[:] = 0.0
        for node in range(1, size[of]):
            if not is_added[of, node]:
                named[parent[of, node]] += path_prob[of, node]
        for node in range(size[of]):
            if is_expanded[of, node] and depth[of, node] < levels:
                one_req[0], one_node[0] = of, node
                confidence[node] = confidence_of(path_prob, parent, one_req, one_node)[0]
                unnamed = max(0.0, path_prob[of, node] - named[node])
                parent_mass[depth[of, node], confidence[node]] += unnamed
            if node and is_added[of, node] and rank[of, node] < most_children:
                level, above = depth[of, node] - 1, confidence[parent[of, node]]
                child_mass[level, above, rank[of, node]] += path_prob[of, node]
    return parent_mass, child_mass


@numba.njit(cache=True)
def close_up(room: tuple[_Array, ...], kept: tuple[_Array, ...], size: _Array) -> None:
    """Candidates without the columns that hold none, roots before them.

    Args:
        room: token, parent, depth, rank, source, draft_prob, path_prob, [num_reqs, num_columns] each;
            parents are columns, -1 is the root; a column of source -1 holds none.
        kept: the same, of one column more, written; roots are there.
        size: [num_reqs] columns in use, written.
    """
    parent, source = room[1], room[4]
    num_reqs, num_columns = parent.shape
    place = np.empty(num_columns, np.int64)
    for of in range(num_reqs):
        at = 1
        for column in range(num_columns):
            if source[of, column] < 0:
                continue
            place[column] = at
            kept[0][of, at] = room[0][of, column]
            kept[1][of, at] = 0 if parent[of, column] < 0 else place[parent[of, column]]
            kept[2][of, at] = room[2][of, column]
            kept[3][of, at] = room[3][of, column]
            kept[4][of, at] = source[of, column]
            kept[5][of, at] = room[5][of, column]
            kept[6][of, at] = room[6][of, column]
            at += 1
        size[of] = at


@numba.njit(cache=True)
def best_of_level(
    path_prob: _Array,
    level_req: _Array,
    level_node: _Array,
    width: _Array,
    active: _Array,
    min_path_prob: float,
) -> tuple[_Array, _Array, _Array]:
    """The likeliest nodes of a level, by request and then best first, ties by id.

    Args:
        level_req, level_node: [num_nodes] the level, by request, ids ascending.
        width: [num_reqs] most nodes of each request.
        active: [num_reqs] bool, requests that take part.

    Returns:
        req, node [num_rows]; row_start [num_reqs + 1].
    """
    num_reqs, num_nodes = len(width), len(level_req)
    req, node = np.empty(num_nodes, np.int64), np.empty(num_nodes, np.int64)
    row_start = np.zeros(num_reqs + 1, np.int64)
    count = first = 0
    for of in range(num_reqs):
        last = first
        while last < num_nodes and level_req[last] == of:
            last += 1
        start = count
        if active[of] and width[of] > 0:
            for place in range(first, last):
                candidate = level_node[place]
                prob = path_prob[of, candidate]
                if not prob > min_path_prob:
                    continue
                # Insert behind all that are as likely; what falls off the end is not kept.
                full = count - start == width[of]
                if full and not prob > path_prob[of, node[count - 1]]:
                    continue
                at = count - 1 if full else count
                while at > start and prob > path_prob[of, node[at - 1]]:
                    node[at] = node[at - 1]
                    at -= 1
                node[at] = candidate
                if not full:
                    req[count] = of
                    count += 1
        row_start[of + 1] = count
        first = last
    return req[:count], node[:count], row_start


@numba.njit(cache=True)
def best_first(path_prob: _Array, depth: _Array, size: _Array) -> tuple[_Array, _Array, _Array]:
    """Each request's candidates, best first, ties by id, unused columns last.

    Returns:
        order and its path_prob, [num_reqs, largest size]; and [num_reqs] the path_prob of the best
        candidate that is not at the depth of its place, 0 if all are: without it and what comes
        after it a tree is a chain.
    """
    num_reqs = len(size)
    columns = size.max() if num_reqs else 1
    order = np.empty((num_reqs, columns), np.int64)
    prob = np.empty((num_reqs, columns), np.float32)
    off_chain = np.zeros(num_reqs, np.float32)
    for of in range(num_reqs):
        by_prob = np.argsort(-path_prob[of, :columns], kind="mergesort")
        for place in range(columns):
            node = by_prob[place]
            order[of, place] = node
            prob[of, place] = path_prob[of, node]
            if not off_chain[of] and depth[of, node] != place:
                off_chain[of] = path_prob[of, node]
    return order, prob, off_chain
