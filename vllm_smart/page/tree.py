"""A draft tree as inline SVG: depths from left to right, the accepted path marked."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from vllm_smart.kernels.evidence import BOTH, GRAMMAR, MODEL, NGRAM
from vllm_smart.page.svg import svg

_COLUMN, _ROW, _RADIUS, _EDGE = 84, 34, 13, 24
_TEXT_COLUMN = 148  # where tokens stand beside their nodes
_SOURCES = {
    MODEL: "the drafter",
    NGRAM: "n-grams",
    BOTH: "the drafter and n-grams",
    GRAMMAR: "the grammar, which allows nothing else",
}


def drawn(nodes: Sequence[dict[str, Any]], text_of: Callable[[int], str]) -> str:
    """A tree.

    Args:
        nodes: as `reports.look` tells them, the root first and parents before children.
        text_of: the text of a token, asked only where nodes have tokens.
    """
    rows, height = _rows(nodes)
    has_texts = any("token" in node for node in nodes)
    column = _TEXT_COLUMN if has_texts else _COLUMN
    place = {
        node["node"]: (_EDGE + column * node["depth"], _EDGE + _ROW * rows[node["node"]])
        for node in nodes
    }
    edges, circles = [], []
    for node in nodes:
        x, y = place[node["node"]]
        state = "on" if node["accepted"] else "off"
        if node["depth"]:
            from_x, from_y = place[node["parent"]]
            middle = from_x + 30
            edges.append(
                f'<path class="edge {state}" d="M{from_x},{from_y} '
                f'C{middle},{from_y} {middle},{y} {x - _RADIUS},{y}"/>'
            )
        circles.append(_node(node, x, y, state, text_of))
    last = [node for node in nodes if node["accepted"]][-1]
    x, y = place[last["node"]]
    circles.append(f'<circle class="last" cx="{x}" cy="{y}" r="{_RADIUS + 3}"/>')
    deepest = max(node["depth"] for node in nodes)
    width = _EDGE + column * deepest + (column if has_texts else _EDGE)
    accepted = sum(node["accepted"] for node in nodes) - 1
    title = f"A tree of {len(nodes) - 1} draft nodes, {accepted} of them accepted"
    return svg(width, _EDGE + _ROW * height, title, [*edges, *circles], "tree", in_pixels=True)


def _rows(nodes: Sequence[dict[str, Any]]) -> tuple[dict[int, int], int]:
    """The row of each node, and how many there are: a node stands beside its first child."""
    children: dict[int, list[int]] = {node["node"]: [] for node in nodes}
    for node in nodes:
        if node["depth"]:
            children[node["parent"]].append(node["node"])
    rows: dict[int, int] = {}
    free = 0
    open_nodes = [nodes[0]["node"]]
    while open_nodes:
        node = open_nodes.pop()
        rows[node] = free
        if not children[node]:
            free += 1
        open_nodes += reversed(children[node])
    return rows, free


def _node(node: dict[str, Any], x: int, y: int, state: str, text_of: Callable[[int], str]) -> str:
    said, inside = "the last known token", ""
    if node["depth"]:
        likely, number = node["path_prob"], node["source"]
        source = _SOURCES.get(number, f"source {number}")
        said = f"depth {node['depth']}, {likely:.1%} likely, named by {source}"
        inside = f"{100 * likely:.0f}"
    parts = [
        f"<title>{said}</title>",
        f'<circle class="node {state}" cx="{x}" cy="{y}" r="{_RADIUS}"/>',
        f'<text class="prob {state}" x="{x}" y="{y + 4}" text-anchor="middle">{inside}</text>',
    ]
    if "token" in node:
        text, left = escape(text_of(node["token"])), x + _RADIUS + 4
        parts.append(f'<text class="token {state}" x="{left}" y="{y + 4}">{text}</text>')
    return f"<g>{''.join(parts)}</g>"
