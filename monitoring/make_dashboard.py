"""Writes the dashboard: `python -m monitoring.make_dashboard`.

Its variables, and its tag, are those of vLLM's own dashboards, so that Grafana links them with one
another. One more is the prefix of names, which is another one under Ray.
"""

import json
from itertools import count
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "grafana" / "vllm_smart.json"

_SELECTOR = 'job=~"$job", model_name=~"$model_name", instance=~"$instance", engine=~"$engine"'
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_HEIGHT = 8
_WIDTH = 24


def series(name: str, **labels: str) -> str:
    """A selector of the engines that are chosen."""
    more = "".join(f', {label}="{value}"' for label, value in labels.items())
    return f"${{prefix}}{name}{{{_SELECTOR}{more}}}"


def rate(name: str, by: str = "", **labels: str) -> str:
    """Sum of a counter's rates, by some labels."""
    of = f" by ({by})" if by else ""
    return f"sum{of} (rate({series(name, **labels)}[$__rate_interval]))"


def ratio(above: str, below: str, by: str = "") -> str:
    """Of the rates of two counters."""
    return f"{rate(above, by)} / {rate(below, by)}"


def target(expr: str, legend: str, **more: Any) -> dict[str, Any]:
    """A query of a panel."""
    return {"datasource": _SOURCE, "expr": expr, "legendFormat": legend, "refId": "A", **more}


def panel(
    kind: str,
    title: str,
    text: str,
    unit: str,
    *targets: dict[str, Any],
    width: int = 8,
    **options: Any,
) -> dict[str, Any]:
    """A panel, not yet placed."""
    named = [{**each, "refId": chr(ord("A") + place)} for place, each in enumerate(targets)]
    defaults: dict[str, Any] = {"unit": unit, "min": options.pop("least", None)}
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": _SOURCE,
        "fieldConfig": {
            "defaults": {name: value for name, value in defaults.items() if value is not None},
            "overrides": [],
        },
        "options": options,
        "targets": named,
        "gridPos": {"w": width, "h": 4 if kind == "stat" else _HEIGHT},
    }


def stat(title: str, text: str, unit: str, expr: str) -> dict[str, Any]:
    """A number over the time that is shown."""
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none"}
    return panel("stat", title, text, unit, target(expr, title), width=4, **options)


def lines(title: str, text: str, unit: str, *targets: dict[str, Any]) -> dict[str, Any]:
    """A graph over time."""
    return panel("timeseries", title, text, unit, *targets, tooltip={"mode": "multi"})


def _over_range(name: str) -> str:
    return f"sum(increase({series(name)}[$__range]))"


def sections() -> dict[str, list[dict[str, Any]]]:
    """Panels by the row that they stand in."""
    errors = "step_time_error_ratio"
    nodes = ratio("chosen_nodes_total", "step_requests_total", "batch")
    at_rest = (
        f"{rate('steps_without_drafting_total', 'reason')} / on () group_left () {rate('steps_total')}"
    )
    quantile = f"histogram_quantile(0.9, {rate(errors + '_bucket', 'le, sign')})"
    forbidden = rate("grammar_nodes_total", verdict="forbidden")
    return {
        "What it saves": [
            stat(
                "Speed-up",
                "What plain decoding would have taken, over what the same steps took.",
                "none",
                f"{_over_range('plain_seconds_total')} / {_over_range('step_seconds_total')}",
            ),
            stat(
                "Saved",
                "Seconds of the engines, over the time shown.",
                "s",
                f"{_over_range('plain_seconds_total')} - {_over_range('step_seconds_total')}",
            ),
            stat(
                "Tokens per tree",
                "Accepted nodes, and the target's own token.",
                "none",
                f"1 + {_over_range('accepted_nodes_total')} / {_over_range('trees_total')}",
            ),
            stat(
                "Error of step times",
                "Mean distance of predicted from measured times.",
                "percentunit",
                f"{_over_range(errors + '_sum')} / {_over_range(errors + '_count')}",
            ),
            stat(
                "Steps at rest",
                "In which no drafter ran.",
                "percentunit",
                f"{_over_range('steps_without_drafting_total')} / {_over_range('steps_total')}",
            ),
            stat(
                "Compiled while serving",
                "Functions for which requests waited; should be 0.",
                "none",
                _over_range("jit_compilations_total"),
            ),
            lines(
                "Speed-up over plain decoding",
                "Below 1 it costs more than it brings.",
                "none",
                target(
                    ratio("plain_seconds_total", "step_seconds_total", "model_name, engine"),
                    "{{model_name}} {{engine}}",
                ),
            ),
            lines(
                "Speed-up by batch size",
                "Beside what the cost table expects of a middling drafter.",
                "none",
                target(ratio("plain_seconds_total", "step_seconds_total", "batch"), "{{batch}}"),
                target(f"avg by (batch) ({series('table_speedup_ratio')} > 0)", "table: {{batch}}"),
            ),
            lines(
                "Steps by batch size",
                "Target steps per second.",
                "ops",
                target(rate("steps_total", "batch"), "{{batch}}"),
            ),
        ],
        "Trees": [
            lines(
                "Nodes of a request by batch size",
                "Chosen for a step, beside what the cost table gives a middling drafter.",
                "none",
                target(nodes, "{{batch}}"),
                target(f"avg by (batch) ({series('table_nodes')} > 0)", "table: {{batch}}"),
            ),
            lines(
                "Depth of trees by batch size",
                "Mean over trees that have a node.",
                "none",
                target(ratio("chosen_tree_levels_total", "chosen_trees_total", "batch"), "{{batch}}"),
            ),
            panel(
                "heatmap",
                "Draft nodes of a step",
                "How many steps verify how many.",
                "none",
                target(rate("step_draft_nodes_bucket", "le"), "{{le}}", format="heatmap"),
                calculate=False,
            ),
            lines(
                "Accepted of the verified, by depth",
                "Deep nodes are verified where they are likely.",
                "percentunit",
                target(ratio("accepted_nodes_total", "draft_nodes_total", "depth"), "{{depth}}"),
            ),
            lines(
                "Accepted over expected, by depth",
                "1: probabilities mean what they say.",
                "none",
                target(ratio("accepted_nodes_total", "expected_nodes_total", "depth"), "{{depth}}"),
            ),
            lines(
                "Accepted of the verified, by source",
                "Who has named the nodes: the drafter, n-grams, or both.",
                "percentunit",
                target(ratio("accepted_nodes_total", "draft_nodes_total", "source"), "{{source}}"),
            ),
        ],
        "Decisions": [
            lines(
                "Why the drafter rests",
                "Share of steps, by reason.",
                "percentunit",
                target(at_rest, "{{reason}}"),
            ),
            lines(
                "The gate",
                "What drafting is expected to gain, and whether it runs.",
                "percentunit",
                target(series("drafting_gain_ratio"), "gain: {{model_name}} {{engine}}"),
                target(series("drafter_runs"), "runs: {{model_name}} {{engine}}"),
            ),
            lines(
                "Work for nothing",
                "Share of draft levels of which no node was verified, of time that n-grams take, of "
                "nodes that a grammar forbids, and of trees that were grown without their grammar.",
                "percentunit",
                target(ratio("unused_draft_levels_total", "draft_levels_total"), "unused levels"),
                target(ratio("ngram_seconds_total", "step_seconds_total"), "n-grams"),
                target(f"{forbidden} / {rate('grammar_nodes_total')}", "forbidden nodes"),
                target(ratio("trees_without_grammar_total", "trees_total"), "without grammar"),
            ),
        ],
        "Predictions": [
            lines(
                "Predicted over measured step time",
                "Of steps without prompts.",
                "none",
                target(
                    ratio(
                        "predicted_step_seconds_total",
                        "measured_step_seconds_total",
                        "model_name, engine",
                    ),
                    "{{model_name}} {{engine}}",
                ),
            ),
            lines(
                "90th percentile of the error",
                "Over: it took less than predicted.",
                "percentunit",
                target(quantile, "{{sign}}"),
            ),
            lines(
                "Factors of the cost table",
                "What live step times make of it.",
                "none",
                target(series("cost_correction_ratio"), "{{of}} {{engine}}"),
            ),
            lines(
                "Time beyond forwards",
                "Of a step, by what it goes with.",
                "s",
                target(series("cost_correction_seconds"), "{{of}} {{engine}}"),
            ),
            panel(
                "table",
                "Engines",
                "What they speculate by.",
                "none",
                target(f"{series('engine_info')} == 1", "", format="table", instant=True),
                width=16,
            ),
        ],
    }


def dashboard() -> dict[str, Any]:
    """The whole, as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    x = y = row_height = 0
    for title, of_row in sections().items():
        y, x = y + row_height, 0
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1}})
        y, row_height = y + 1, 0
        for each in of_row:
            place = each["gridPos"]
            if x + place["w"] > _WIDTH:
                x, y, row_height = 0, y + row_height, 0
            panels.append({**each, "gridPos": {"x": x, "y": y, **place}})
            x, row_height = x + place["w"], max(row_height, place["h"])
    numbers = count(1)
    return {
        "uid": "vllm-smart",
        "title": "vLLM with draft trees",
        "tags": ["vllm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["vllm"], "title": "vLLM", "asDropdown": True}],
        "templating": {"list": _variables()},
        "panels": [{"id": next(numbers), **each} for each in panels],
    }


def _variables() -> list[dict[str, Any]]:
    of_metrics = []
    chosen: list[str] = []
    for label in ("job", "model_name", "instance", "engine"):
        among = ", ".join(f'{name}=~"${name}"' for name in chosen)
        of_metrics.append(
            {
                "type": "query",
                "name": label,
                "datasource": _SOURCE,
                "query": f"label_values(${{prefix}}steps_total{{{among}}}, {label})",
                "refresh": 2,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            }
        )
        chosen.append(label)
    prefixes = ("vllm_smart:", "ray_vllm_smart_")
    prefix = {
        "type": "custom",
        "name": "prefix",
        "query": ",".join(prefixes),
        "options": [
            {"text": name, "value": name, "selected": name == prefixes[0]} for name in prefixes
        ],
        "current": {"text": prefixes[0], "value": prefixes[0]},
    }
    source = {"type": "datasource", "name": "datasource", "query": "prometheus"}
    return [source, prefix, *of_metrics]


def text() -> str:
    """As it is stored."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text(), encoding="utf-8")
