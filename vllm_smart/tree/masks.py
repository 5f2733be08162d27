"""Which nodes a node may attend to: its ancestors and itself, as bits."""

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
    node = np.arange(max_nodes)
    bit = np.uint64(1) << (node % 64).astype(np.uint64)
    above = np.maximum(parent, 0)
    masks = np.zeros((num_reqs, max_nodes, words), np.uint64)
    for word in range(needed):
        own = np.where(node // 64 == word, bit, np.uint64(0))
        masks[:, :, word] = _with_ancestors(own, above)
    return masks


def _with_ancestors(
    own: npt.NDArray[np.uint64], above: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint64]:
    """The bits of each node and of all its ancestors: [num_reqs, max_nodes].

    Pointer doubling: after k rounds a mask covers 2**k generations and `above` points past them.

    Args:
        own: [max_nodes] each node's own bits.
        above: [num_reqs, max_nodes] parents; roots are their own.
    """
    num_reqs, max_nodes = above.shape
    first = np.arange(0, num_reqs * max_nodes, max(max_nodes, 1))[:, None]
    mask = np.broadcast_to(own | own[:1], above.shape)  # the root is everybody's ancestor
    while above.any():
        at = above + first
        mask = mask | mask.reshape(-1)[at]
        above = above.reshape(-1)[at]
    return mask
