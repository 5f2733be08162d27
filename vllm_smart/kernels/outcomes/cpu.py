"""The loop over walks, compiled."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]


@numba.njit(cache=True)
def judged_nodes(
    parent: _Array,
    depth: _Array,
    rank: _Array,
    source: _Array,
    draft_prob: _Array,
    is_node: _Array,
    path: _Array,
) -> tuple[_Array, _Array, _Array, _Array, _Array, _Array]:
    """The nodes about which the target was asked: is it this one, if none of the siblings before?

    Siblings are asked about in the order of their columns, which is that of their ranks. Those after
    the accepted one, and descendants of rejected nodes, say nothing.

    Args:
        parent, depth, rank, source, draft_prob: [num_reqs, max_nodes] of trees, the root in column 0.
        is_node: [num_reqs, max_nodes] what was verified, roots included.
        path: [num_reqs, longest + 1] columns of the accepted path, the root first, -1 beyond.

    Returns:
        Per node asked about: its request; its share, which is draft_prob over what the draft leaves
        for it and its later siblings; its depth; its rank; its source; whether it was accepted.
    """
    most = is_node.sum()
    req, share = np.empty(most, np.int64), np.empty(most, np.float32)
    depths, ranks = np.empty(most, np.int32), np.empty(most, np.int32)
    sources = np.empty(most, np.int32)
    accepted = np.empty(most, np.bool_)
    count = 0
    for row in range(path.shape[0]):
        for place in range(path.shape[1]):
            above = path[row, place]
            if above < 0:
                break
            taken = path[row, place + 1] if place + 1 < path.shape[1] else -1
            left = 1.0
            for node in range(1, parent.shape[1]):
                if not is_node[row, node] or parent[row, node] != above:
                    continue
                prob = draft_prob[row, node]
                req[count] = row
                share[count] = min(prob / left, 1.0) if left > 0 else 1.0
                depths[count], ranks[count] = depth[row, node], rank[row, node]
                sources[count] = source[row, node]
                accepted[count] = node == taken
                count += 1
                left -= prob
                if node == taken:
                    break
    of_nodes = depths[:count], ranks[:count], sources[:count]
    return req[:count], share[:count], *of_nodes, accepted[:count]
