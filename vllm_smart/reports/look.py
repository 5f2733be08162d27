"""What a worker tells somebody who looks at its engine: plain data, made when it is asked for.

Of steps it keeps two references to arrays that each of them makes anyway, and only if there is a page.
"""

from typing import Any

import numpy as np

from vllm_smart.profiling import CorrectedCost
from vllm_smart.tree import TreeBatch

_MOST_POINTS = 48  # of a drawn curve


class LatestTrees:
    """The trees that were verified last."""

    def __init__(self, with_tokens: bool) -> None:
        """Args:
        with_tokens: whether to tell which tokens were drafted: they are text of requests.
        """
        self._with_tokens = with_tokens
        self._latest: tuple[TreeBatch, np.ndarray] | None = None

    def forget(self) -> None:
        """What was verified so far meant nothing."""
        self._latest = None

    def verified(self, trees: TreeBatch, path: np.ndarray) -> None:
        """A step's trees, which nobody changes afterwards, and [num_reqs, longest] their paths."""
        self._latest = trees, path

    def largest(self) -> list[dict[str, Any]] | None:
        """The nodes of the largest tree of the latest step, parents first; None before there is one."""
        if self._latest is None:
            return None
        trees, path = self._latest
        req = int(trees.num_nodes.argmax())
        accepted = set(path[req].tolist())
        nodes = []
        for node in range(int(trees.num_nodes[req])):
            if trees.path_prob[req, node] <= 0:
                continue  # vLLM's padding, which is no draft
            found = {
                "node": node,
                "parent": int(trees.parent[req, node]),
                "depth": int(trees.depth[req, node]),
                "path_prob": round(float(trees.path_prob[req, node]), 4),
                "source": int(trees.source[req, node]),
                "accepted": node in accepted,
            }
            if self._with_tokens and node > 0:
                found["token"] = int(trees.token[req, node])
            nodes.append(found)
        return nodes


def seen(cost: CorrectedCost | None, trees: LatestTrees | None) -> dict[str, Any]:
    """What an engine goes by, and what it made of it last.

    Args:
        cost: None where it knows no costs.
        trees: None where nobody keeps them.
    """
    return {
        "costs": _curves(cost) if cost is not None else [],
        "tree": trees.largest() if trees is not None else None,
    }


def _curves(cost: CorrectedCost) -> list[dict[str, Any]]:
    """What forwards take by their rows: measured points, the table's curve, and the corrected one."""
    table = cost.table
    samples = table.samples
    curves = [_curve("target step", samples.verify, table.verify_ms, cost.verify_ms)]
    if samples.draft:
        curves.append(_curve("draft level", samples.draft, table.draft_ms, cost.draft_ms))
    return curves


def _curve(name: str, points: Any, stored: Any, corrected: Any) -> dict[str, Any]:
    largest = max(rows for rows, _ in points)
    spread = np.geomspace(1, max(largest, 1), _MOST_POINTS).round().astype(np.int64)
    rows = sorted({*spread.tolist(), *(rows for rows, _ in points)} - {0})
    return {
        "name": name,
        "measured": [[rows, ms] for rows, ms in sorted(points) if rows],
        "rows": rows,
        "stored_ms": [float(stored(each)) for each in rows],
        "corrected_ms": [float(corrected(each)) for each in rows],
    }
