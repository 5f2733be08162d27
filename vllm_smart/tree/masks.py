"""Which nodes a node may attend to: its ancestors and itself, as bits."""

import numba
import numpy as np
import numpy.typing as npt


def ancestor_masks(parent: npt.NDArray[np.int32], words: int | None = None) -> npt.NDArray[np.uint64]:
    """Ancestor sets of all nodes of a batch of trees, as bit masks.

    Args:
        parent: [num_reqs, max_nodes], -1 at roots; also padding lies below its index.
        words: 64-bit words per mask; None takes ceil(max_nodes / 64).

    Returns:
        [num_reqs, max_nodes, words] uint64. Bit j of row i (bit j % 64 of word j // 64) is set
        iff j is an ancestor of i or i itself. Rows of padding mean nothing.

    Raises:
        ValueError: `words` cannot hold max_nodes bits.
    """
    num_reqs, max_nodes = parent.shape
    needed = max(1, -(-max_nodes // 64))
    words = needed if words is None else words
    if words < needed:
        raise ValueError(f"words={words} holds {words * 64} nodes, not {max_nodes}")
    masks = np.zeros((num_reqs, max_nodes, words), np.uint64)
    _fill(masks, np.ascontiguousarray(parent, np.int32))  # one type: loops are compiled for each
    return masks


@numba.njit(cache=True)
def _fill(masks: npt.NDArray[np.uint64], parent: npt.NDArray[np.int32]) -> None:
    """Give each node its parent's bits, which are there already, and its own."""
    for req in range(parent.shape[0]):
        for node in range(parent.shape[1]):
            if parent[req, node] >= 0:
                masks[req, node] = masks[req, parent[req, node]]
            masks[req, node, node // 64] |= np.uint64(1) << np.uint64(node % 64)
