"""Draws the dashboard as Grafana would, from a recording: `python -m monitoring.draw_dashboard PNG`.

`python -m monitoring.draw_dashboard record URL SECONDS` records a server first, beside
`python -m monitoring.load URL`.
"""

import itertools
import json
import math
import re
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from prometheus_client.parser import text_string_to_metric_families

from monitoring.make_dashboard import PATH
from monitoring.promql import Labels, Recording, Vector, query

RECORDING = Path(__file__).parent / "recorded.json"
_EVERY_S = 4.0
_RATE_S = 20
_SCRAPED = {"job": "vllm", "instance": "localhost:8000"}  # labels that Prometheus adds
_UNITS = {"percentunit": ("%", 100.0), "s": ("s", 1.0), "ops": ("/s", 1.0), "none": ("", 1.0)}
_WIDTH, _UNIT_IN = 24, 0.62  # columns of Grafana's grid, and inches of each
_LEGEND = 1.1  # rows of the grid that names of curves take, below them as in Grafana
_TABLE = "table: "  # before the name of what is compared with it


def recorded(expositions: list[tuple[float, str]]) -> Recording:
    """What a server has said at some times."""
    series: dict[tuple[str, Labels], list[float]] = {}
    for place, (_, text) in enumerate(expositions):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not sample.name.startswith("vllm_smart:") or sample.name.endswith("_created"):
                    continue
                labels = frozenset({**sample.labels, **_SCRAPED}.items())
                values = series.setdefault((sample.name, labels), [0.0] * len(expositions))
                values[place] = sample.value
    start = expositions[0][0]
    return Recording([round(at - start, 2) for at, _ in expositions], series)


def filled(expr: str, recording: Recording) -> str:
    """A query of the dashboard with Grafana's variables put in."""
    whole = f"{math.ceil(recording.times[-1])}s"
    expr = expr.replace("${prefix}", "vllm_smart:").replace("$__rate_interval", f"{_RATE_S}s")
    return re.sub(r"\$[a-z_]+", ".*", expr.replace("$__range", whole))


def legend(text: str, labels: Labels) -> str:
    """What a curve is called."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: dict(labels).get(match[1], ""), text)


def curves(panel: dict[str, Any], recording: Recording) -> dict[str, list[float]]:
    """A value for each recorded time, by the names of curves."""
    found: dict[str, list[float]] = {}
    for target in panel["targets"]:
        text = filled(target["expr"], recording)
        for place in range(len(recording.times)):
            for labels, value in query(recording, text, place).items():
                name = legend(target["legendFormat"], labels) or "value"
                values = found.setdefault(name, [math.nan] * len(recording.times))
                values[place] = value
    return found


def now(panel: dict[str, Any], recording: Recording) -> Vector:
    """What a panel of one number, or a table, shows."""
    expr = filled(panel["targets"][0]["expr"], recording)
    return query(recording, expr, len(recording.times) - 1)


def draw(path: Path, recording: Recording) -> None:
    """All panels, where Grafana puts them."""
    panels = json.loads(PATH.read_text(encoding="utf-8"))["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(_WIDTH * _UNIT_IN, rows * _UNIT_IN * 0.6), facecolor="#f4f5f5")
    for panel in panels:
        at = panel["gridPos"]
        left, top = at["x"] / _WIDTH, 1 - at["y"] / rows
        if panel["type"] == "row":
            figure.text(left + 0.008, top - 0.7 / rows, panel["title"], weight="bold", size=12)
            continue
        below = _LEGEND if panel["type"] == "timeseries" else 0.0
        width, height = at["w"] / _WIDTH - 0.05, (at["h"] - 2.3 - below) / rows
        box = (left + 0.038, top - (at["h"] - 1.0 - below) / rows, width, height)
        axes = figure.add_axes(box)
        axes.set_title(panel["title"], loc="left", size=9.5, weight="bold")
        _DRAWN[panel["type"]](axes, panel, recording)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _stat(axes: Axes, panel: dict[str, Any], recording: Recording) -> None:
    unit, factor = _unit(panel)
    value = factor * next(iter(now(panel, recording).values()), math.nan)
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    axes.text(0.5, 0.5, f"{text}{unit}", ha="center", va="center", size=20, color="#1f60c4")
    axes.axis("off")


def _lines(axes: Axes, panel: dict[str, Any], recording: Recording) -> None:
    unit, factor = _unit(panel)
    found = curves(panel, recording)
    order = sorted(found, key=_place)
    colours = {name: f"C{at % 10}" for at, name in enumerate(dict.fromkeys(map(_bare, order)))}
    for name in order:
        style = "--" if name.startswith(_TABLE) else "-"
        values = [factor * v for v in found[name]]
        axes.plot(recording.times, values, style, color=colours[_bare(name)], label=name, linewidth=1.4)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}s")
    axes.legend(
        fontsize=6.5, ncols=6, loc="upper left", bbox_to_anchor=(-0.02, -0.1), frameon=False,
        columnspacing=1.0, handlelength=1.2,
    )  # fmt: skip


def _bare(name: str) -> str:
    return name.removeprefix(_TABLE)


def _place(name: str) -> tuple[bool, float, str]:
    """Numbers by their size, then names; those of the table last."""
    number = re.match(r"\d+", _bare(name))
    return name.startswith(_TABLE), float(number[0]) if number else math.inf, name


def _heatmap(axes: Axes, panel: dict[str, Any], recording: Recording) -> None:
    found = curves(panel, recording)
    edges = sorted(found, key=float)
    counts = [[0.0 if math.isnan(v) else v for v in found[edge]] for edge in edges]
    each = [counts[0]]
    each += [[b - a for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(counts)]
    axes.imshow(each, origin="lower", aspect="auto", cmap="Blues", interpolation="nearest")
    axes.set_yticks(range(len(edges)), [f"≤ {float(edge):g}" for edge in edges], fontsize=6)
    axes.set_xticks([])


def _table(axes: Axes, panel: dict[str, Any], recording: Recording) -> None:
    names = ("model_name", "engine", "policy", "drafter", "table", "version")
    rows = [[dict(labels).get(name, "") for name in names] for labels in now(panel, recording)]
    table = axes.table(rows, colLabels=names, loc="upper center", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(range(len(names)))
    axes.axis("off")


_DRAWN = {"stat": _stat, "timeseries": _lines, "heatmap": _heatmap, "table": _table}


def _unit(panel: dict[str, Any]) -> tuple[str, float]:
    return _UNITS[panel["fieldConfig"]["defaults"]["unit"]]


def record(url: str, seconds: float) -> None:
    """Look at a server for a while."""
    seen, end = [], time.time() + seconds
    while time.time() < end:
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            seen.append((time.time(), answer.read().decode()))
        time.sleep(_EVERY_S)
    recorded(seen).save(RECORDING)


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record(sys.argv[2], float(sys.argv[3]))
    else:
        draw(Path(sys.argv[1]), Recording.load(RECORDING))
