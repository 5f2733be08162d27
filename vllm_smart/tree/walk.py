"""Following the target's own samples through draft trees."""

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
    stop = max_nodes  # one node too many: where walks end
    first = np.arange(0, num_reqs * max_nodes, max_nodes)
    above = np.maximum(parent, 0)
    wanted = sampled.reshape(-1)[above + first[:, None]]
    taken = (token == wanted) & (np.arange(max_nodes) < num_nodes[:, None])
    taken[:, 0] = False
    # [num_reqs, max_nodes + 1] the child that the target continues with after each node.
    child = np.full((num_reqs, max_nodes + 1), stop, np.int32)
    req, node = np.nonzero(taken)
    child[req, above[req, node]] = node
    child = child.reshape(-1)
    first += np.arange(num_reqs)
    path = [np.zeros(num_reqs, np.int32)]
    while True:
        visited = child[first + path[-1]]
        if visited.min(initial=stop) == stop:
            break
        path.append(visited)
    nodes = np.stack(path, axis=1)
    beyond = nodes == stop
    nodes[beyond] = -1
    return nodes, (len(path) - 1 - beyond.sum(axis=1)).astype(np.int32)


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
