"""Trees as runs of nodes from root to leaf, for code that knows only linear histories."""

import numpy as np
import numpy.typing as npt


def leaf_segments(parent: npt.NDArray[np.int32], num_nodes: int) -> list[list[int]]:
    """The nodes from the root to each leaf of one tree.

    Args:
        parent: [max_nodes], -1 at the root.
        num_nodes: root included, at least 1.

    Returns:
        One list per leaf, in the order of the leaves; together they cover every node.
    """
    up = parent[:num_nodes].tolist()
    inner = set(up)
    segments = []
    for leaf in range(num_nodes):
        if leaf in inner:
            continue
        segment = [leaf]
        while up[segment[-1]] >= 0:
            segment.append(up[segment[-1]])
        segments.append(segment[::-1])
    return segments


def segment_places(segments: list[list[int]], num_nodes: int) -> list[tuple[int, int]]:
    """For every node, one (segment, offset in the segment) where it appears: its first."""
    places: dict[int, tuple[int, int]] = {}
    for number, segment in enumerate(segments):
        for offset, node in enumerate(segment):
            places.setdefault(node, (number, offset))
    return [places[node] for node in range(num_nodes)]
