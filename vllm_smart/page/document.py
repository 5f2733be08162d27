"""The page: HTML and inline SVG, nothing from elsewhere."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from vllm_smart.page import tree
from vllm_smart.page.look import EngineLook
from vllm_smart.page.svg import Bar, Line, bars, curves
from vllm_smart.top import words
from vllm_smart.top.view import AcceptanceRow, View

_STYLE = """
:root { color-scheme: light dark; --back: #f4f5f7; --card: #fff; --ink: #1c2128; --dim: #667080;
  --rule: #dde1e7; --bar: #4c86c6; --mark: #c2510c; --good: #1a7f4b; --off: #a9b2bf; }
@media (prefers-color-scheme: dark) { :root { --back: #14171c; --card: #1e232a; --ink: #e4e8ee;
  --dim: #98a3b3; --rule: #343b46; --bar: #5b9ae0; --mark: #f0883e; --good: #3fb97a; --off: #5d6875; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 16px; background: var(--back); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 20px; margin: 0; overflow-wrap: anywhere; }
h1 small { font-size: 13px; font-weight: 400; } h2 { font-size: 17px; margin: 24px 0 2px; }
h3 { font-size: 14px; margin: 0 0 8px; } p { margin: 4px 0; } .dim, figcaption { color: var(--dim); }
.cards { display: grid; gap: 12px; margin-top: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 350px), 1fr)); }
.tables { grid-template-columns: repeat(auto-fit, minmax(min(100%, 540px), 1fr)); align-items: start; }
.why { margin-top: 12px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px;
  min-width: 0; margin: 0; }
.wide { grid-column: 1 / -1; } .scroll { overflow-x: auto; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(135px, 1fr));
  margin-top: 12px; }
.tile { display: flex; flex-direction: column; } .tile b { margin-top: auto; }
.tile b { display: block; font-size: 25px; font-variant-numeric: tabular-nums; line-height: 1.25; }
.tile span { font-size: 13px; color: var(--dim); display: block; }
figcaption { font-size: 13px; margin-top: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { color: var(--dim); font-weight: 500; } th, td { text-align: right; padding: 3px 0 3px 14px;
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr { border-top: 1px solid var(--rule); }
.chart { width: 100%; max-width: 520px; display: block; margin: auto; }
svg text { fill: var(--dim); font-size: 11px; }
.grid { stroke: var(--rule); } .axis { stroke: var(--dim); } .bar { fill: var(--bar); }
.base { stroke: var(--dim); stroke-dasharray: 4 3; } .mark { stroke: var(--mark); stroke-width: 3; }
polyline { fill: none; stroke-width: 2; } polyline.stored { stroke: var(--off); stroke-dasharray: 5 4; }
polyline.corrected { stroke: var(--bar); } circle.measured { fill: none; stroke: var(--dim); }
.tree { display: block; } .edge { fill: none; stroke: var(--off); } .edge.on { stroke: var(--good);
  stroke-width: 3; } .node { fill: var(--card); stroke: var(--off); } .node.on { fill: var(--good);
  stroke: var(--good); } .last { fill: none; stroke: var(--good); }
svg .prob { font-size: 10.5px; fill: var(--dim); } svg .prob.on { fill: var(--card); font-weight: 600; }
svg .token { font: 12px ui-monospace, monospace; fill: var(--dim); paint-order: stroke;
  stroke: var(--card); stroke-width: 8px; white-space: pre; } svg .token.on { fill: var(--ink); }
"""
# Asks for the page again and again, and takes over what is in it.
_SCRIPT = """
async function refresh() {
  try {
    const answer = await fetch(location.pathname + "?over=2");
    if (answer.ok) {
      document.getElementById("when").textContent = "at " + new Date().toLocaleTimeString();
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.querySelector("main").replaceWith(page.querySelector("main"));
    }
    document.body.classList.toggle("dim", !answer.ok);
  } catch { document.body.classList.add("dim"); }
  setTimeout(refresh, document.hidden ? 10000 : 1000);
}
setTimeout(refresh, 1000);
"""


def page(model: str, engines: Sequence[EngineLook], text_of: Callable[[int], str]) -> str:
    """The whole page.

    Args:
        model: that is served.
        engines: all of them.
        text_of: the text of a token; asked only where engines tell tokens.
    """
    name = escape(model)
    sections = "".join(_engine(look, len(engines) > 1, text_of) for look in engines)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: draft trees</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>"
        f'<h1>{name} <small class="dim" id="when"></small></h1><main>{sections}</main>'
        f"<script>{_SCRIPT}</script></body></html>"
    )


def _engine(look: EngineLook, is_one_of_several: bool, text_of: Callable[[int], str]) -> str:
    heading = f"<h2>Engine {look.engine}</h2>" if is_one_of_several else ""
    now, overall = look.now, look.overall
    return (
        f'<section>{heading}<p class="dim">{escape(words.about(overall))}</p>'
        f'{_tiles(now, overall)}<p class="why">{escape(words.why(now))}</p>'
        f'<div class="cards">{_by_batch(overall)}{_by_acceptance(overall)}{_costs(look.costs)}'
        f"{_tree(look.tree, text_of)}"
        f'</div><div class="cards tables">{_table("By batch size", words.batches(now, overall))}'
        f"{_table('By depth and source', words.acceptance(overall))}</div></section>"
    )


def _tiles(now: View, overall: View) -> str:
    tiles = "".join(
        f'<div class="card tile"><span>{escape(name)}</span><b>{since_start}</b>'
        f"<span>now {of_late}</span></div>"
        for name, of_late, since_start in words.summary(now, overall).rows
    )
    return f'<div class="tiles">{tiles}</div>'


def _by_batch(overall: View) -> str:
    rows = [row for row in overall.batches if row.batch != "0"]
    if not rows:
        return ""
    has_table = any(row.table_speedup for row in rows)
    nodes = [Bar(r.batch, r.nodes, r.table_nodes if has_table else None) for r in rows]
    speedups = [Bar(r.batch, r.speedup, r.table_speedup if has_table else None) for r in rows]
    mark = " Marks: what the cost table gives a middling drafter." if has_table else ""
    return _figure(
        "Draft nodes of a request",
        bars("Draft nodes of a request by batch size", "requests in a step", nodes, "{:.3g}"),
        f"Chosen for a step, on average.{mark}",
    ) + _figure(
        "Speed-up over plain decoding",
        bars("Speed-up by batch size", "requests in a step", speedups, "{:.3g}", base=1.0),
        f"Of steps, since the start.{mark} Below the line it costs more than it brings.",
    )


def _by_acceptance(overall: View) -> str:
    if not overall.depths:
        return ""
    return _figure(
        "Accepted, by depth",
        bars("Accepted share by depth", "depth", list(map(_accepted, overall.depths)), "{:.0%}"),
        "Of the nodes verified. Marks: as many as were expected.",
    ) + _figure(
        "Accepted, by source",
        bars("Accepted share by source", "named by", list(map(_accepted, overall.sources)), "{:.0%}"),
        "Who has named the node: the drafter (model), n-grams, both, or a grammar that forces it.",
    )


def _accepted(row: AcceptanceRow) -> Bar:
    expected = row.rate / row.calibration if row.rate is not None and row.calibration else None
    return Bar(row.what, row.rate, expected)


def _costs(costs: Sequence[dict[str, Any]]) -> str:
    found = ""
    for cost in costs:
        lines = [
            Line("stored", list(zip(cost["rows"], cost["stored_ms"], strict=True))),
            Line("corrected", list(zip(cost["rows"], cost["corrected_ms"], strict=True))),
            Line("measured", cost["measured"], dots=True),
        ]
        found += _figure(
            f"Cost of a {cost['name']}",
            curves(f"Milliseconds of a {cost['name']} by its rows", "rows", "ms", lines),
            "Circles: measured. Dashed: the stored table. Solid: as live steps have corrected it.",
        )
    return found


def _tree(nodes: Sequence[dict[str, Any]] | None, text_of: Callable[[int], str]) -> str:
    if not nodes:
        return _figure("The latest tree", "<p>No tree has been verified yet.</p>", "", wide=True)
    caption = (
        "Of the latest step with trees, its largest. Numbers: how likely a node was taken to be "
        "accepted, in per cent. Green: the accepted path, from the last known token on the left; "
        "after its ringed end the target added a token of its own."
    )
    drawing = f'<div class="scroll">{tree.drawn(nodes, text_of)}</div>'
    return _figure("The latest tree", drawing, caption, wide=True)


def _table(title: str, cells: words.Cells) -> str:
    if not cells.rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in cells.head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells.rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="card"><h3>{title}</h3><div class="scroll">{table}</div></div>'


def _figure(title: str, drawing: str, caption: str, wide: bool = False) -> str:
    style = "card wide" if wide else "card"
    return (
        f'<figure class="{style}"><h3>{escape(title)}</h3>{drawing}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
