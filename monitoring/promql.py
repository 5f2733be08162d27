"""As much of Prometheus' query language as the dashboard uses, over a recording.

It stands in for Prometheus and Grafana where they cannot run: in tests, and for pictures in the docs.
Rates are differences over a window, without Prometheus' extrapolation to its ends.
"""

import json
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "/": lambda a, b: a / b if b else math.nan,
}
_FILTERS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_MANY_VALUED = {"batch", "depth", "source", "le"}


@dataclass(frozen=True)
class Recording:
    """What a server has exported, again and again."""

    times: list[float]  # seconds, ascending
    series: dict[tuple[str, Labels], list[float]]  # by name and labels: a value for each time

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """From the file that `draw_dashboard record` writes."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        series = {
            (name, frozenset(map(tuple, labels))): values for name, labels, values in stored["series"]
        }
        return cls(stored["times"], series)

    def save(self, path: Path) -> None:
        """Without what was never anything but 0, where labels have many values."""
        kept = [
            [name, sorted(labels), [round(value, 6) for value in values]]
            for (name, labels), values in self.series.items()
            if any(values) or not {key for key, _ in labels} & _MANY_VALUED
        ]
        path.write_text(json.dumps({"times": self.times, "series": kept}) + "\n", encoding="utf-8")


def query(recording: Recording, text: str, place: int) -> Vector:
    """The result of a query at one of the recorded times.

    Raises:
        NotImplementedError: the query has something that is not used here.
    """
    found = _value(recording, promql.parse(text), place)
    return {frozenset(): found} if isinstance(found, float) else found


def _value(recording: Recording, node: Any, place: int) -> Vector | float:
    if isinstance(node, promql.ParenExpr):
        return _value(recording, node.expr, place)
    if isinstance(node, promql.NumberLiteral):
        return float(node.val)
    if isinstance(node, promql.VectorSelector):
        return {labels: values[place] for labels, values in _selected(recording, node)}
    if isinstance(node, promql.AggregateExpr):
        return _aggregated(node, _vector(recording, node.expr, place))
    if isinstance(node, promql.BinaryExpr):
        return _combined(node, _value(recording, node.lhs, place), _value(recording, node.rhs, place))
    if isinstance(node, promql.Call):
        name = node.func.name
        if name in ("rate", "increase"):
            return _risen(recording, node.args[0], place, per_second=name == "rate")
        if name == "histogram_quantile":
            return _quantile(node.args[0].val, _vector(recording, node.args[1], place))
    raise NotImplementedError(str(node))


def _vector(recording: Recording, node: Any, place: int) -> Vector:
    found = _value(recording, node, place)
    assert isinstance(found, dict)
    return found


def _selected(recording: Recording, selector: Any) -> list[tuple[Labels, list[float]]]:
    """Series without their name."""
    found = []
    for (name, labels), values in recording.series.items():
        has = dict(labels)
        if name == selector.name and all(_matches(m, has) for m in selector.matchers.matchers):
            found.append((labels, values))
    return found


def _matches(matcher: Any, has: dict[str, str]) -> bool:
    value = has.get(matcher.name, "")
    if matcher.op == promql.MatchOp.Equal:
        return bool(value == matcher.value)
    if matcher.op == promql.MatchOp.Re:
        return re.fullmatch(matcher.value, value) is not None
    raise NotImplementedError(str(matcher))


def _risen(recording: Recording, matrix: Any, place: int, per_second: bool) -> Vector:
    times, window = recording.times, matrix.range.total_seconds()
    first = next(at for at, time in enumerate(times) if time >= times[place] - window)
    if first == place:
        return {}
    seconds = times[place] - times[first] if per_second else 1.0
    selected = _selected(recording, matrix.vector_selector)
    return {labels: (values[place] - values[first]) / seconds for labels, values in selected}


def _aggregated(node: Any, vector: Vector) -> Vector:
    kept = set(node.modifier.labels) if node.modifier is not None else set()
    groups: dict[Labels, list[float]] = {}
    for labels, value in vector.items():
        groups.setdefault(frozenset(pair for pair in labels if pair[0] in kept), []).append(value)
    name = str(node.op)
    if name not in ("sum", "avg"):
        raise NotImplementedError(str(node))
    return {
        labels: sum(values) / (len(values) if name == "avg" else 1) for labels, values in groups.items()
    }


def _combined(node: Any, left: Vector | float, right: Vector | float) -> Vector | float:
    name = str(node.op)
    if isinstance(left, float) and isinstance(right, float):
        return _ARITHMETIC[name](left, right)
    if isinstance(left, float):
        assert isinstance(right, dict)
        return {labels: _ARITHMETIC[name](left, value) for labels, value in right.items()}
    if name in _FILTERS:
        assert isinstance(right, float)
        return {labels: value for labels, value in left.items() if _FILTERS[name](value, right)}
    found: Vector = {}
    for labels, value in left.items():
        other = right
        if isinstance(right, dict):
            only = len(right) == 1 and node.modifier is not None and node.modifier.matching is not None
            other = next(iter(right.values())) if only else right.get(labels, math.nan)
        assert isinstance(other, float)
        found[labels] = _ARITHMETIC[name](value, other)
    return found


def _quantile(share: float, buckets: Vector) -> Vector:
    """Linear within buckets, as Prometheus has it."""
    groups: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in buckets.items():
        edge = float(dict(labels)["le"])
        rest = frozenset(pair for pair in labels if pair[0] != "le")
        groups.setdefault(rest, []).append((edge, count))
    found = {}
    for labels, counts in groups.items():
        counts.sort()
        wanted = share * counts[-1][1]
        low, before = 0.0, 0.0
        found[labels] = math.nan
        for edge, count in counts:
            if count >= wanted and counts[-1][1]:
                inside = (wanted - before) / (count - before) if count > before else 0.0
                found[labels] = low if math.isinf(edge) else low + (edge - low) * inside
                break
            low, before = edge, count
    return found
