"""Following the target's own samples through draft trees."""

import numba
import numpy as np
import numpy.typing as npt


def walk(
    parent: npt.NDArray[np.int32],
    token: npt.NDArray[np.int64],
    num_nodes: npt.NDArray[np.int32],
    sampled: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Walk every tree from its root to the child that carries the target's sample, and on.

    Exact at any temperature: the emitted tokens are `sampled` along the path, whatever the tree
    looks like, as long as its shape depends on nothing that the target samples in this step.
    Siblings carry distinct tokens, or tokens that no sample equals.

    Args:
        parent: [num_reqs, max_nodes], -1 at roots.
        token: [num_reqs, max_nodes] the nodes' own tokens; the roots' are not read.
        num_nodes: [num_reqs] root included; entries beyond are padding and never visited.
        sampled: [num_reqs, max_nodes] the target's token after each node.

    Returns:
        path: [num_reqs, longest + 1] int32, the nodes visited, root first, -1 beyond; `longest`
            is the largest of num_accepted.
        num_accepted: [num_reqs] int32, draft nodes visited.
    """
    num_reqs, max_nodes = parent.shape
    path = np.full((num_reqs, max_nodes), -1, np.int32)
    num_accepted = np.empty(num_reqs, np.int32)
    longest = _follow(parent, token, num_nodes, sampled, path, num_accepted)
    return path[:, : longest + 1], num_accepted


@numba.njit(cache=True)
def _follow(
    parent: npt.NDArray[np.int32],
    token: npt.NDArray[np.int64],
    num_nodes: npt.NDArray[np.int32],
    sampled: npt.NDArray[np.int64],
    path: npt.NDArray[np.int32],
    num_accepted: npt.NDArray[np.int32],
) -> int:
    """Fill `path` and `num_accepted`; returns the longest. Children come after their parents."""
    longest = 0
    for req in range(len(parent)):
        at = path[req, 0] = 0
        length = 0
        for node in range(1, num_nodes[req]):
            if parent[req, node] == at and token[req, node] == sampled[req, at]:
                at = node
                length += 1
                path[req, length] = node
        num_accepted[req] = length
        longest = max(longest, length)
    return longest


def walk_reference(
    parent: npt.NDArray[np.int32],
    token: npt.NDArray[np.int64],
    num_nodes: int,
    sampled: npt.NDArray[np.int64],
) -> list[int]:
    """The definition of the walk, for one request.

    Args:
        parent, token, sampled: [max_nodes] as for `walk`.
        num_nodes: root included.

    Returns:
        The nodes visited, root first.
    """
    path = [0]
    while True:
        for node in range(1, num_nodes):
            if parent[node] == path[-1] and token[node] == sampled[path[-1]]:
                path.append(node)
                break
        else:
            return path
