"""Charts as inline SVG. Colours are the page's; see `document`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 14, 34
_DIGIT = 6.5  # how wide one is, about


class Bar(NamedTuple):
    """One value, and another one to hold it against."""

    name: str
    value: float | None  # None: there is nothing to show
    mark: float | None


@dataclass(frozen=True)
class Line:
    """One curve: (x, y) each."""

    style: str  # a class of the page's style sheet
    points: Sequence[tuple[float, float]]
    dots: bool = False  # points instead of a line


def bars(title: str, x_name: str, values: Sequence[Bar], text: str, base: float | None = None) -> str:
    """Values side by side, each with a mark across its bar.

    Args:
        title: what is shown, for those who cannot see it.
        x_name: what the names of bars are.
        values: at least one.
        text: how to print a number, e.g. "{:.1f}".
        base: where to draw a line across the chart; None = nowhere.
    """
    shown = [v for bar in values for v in (bar.value, bar.mark) if v is not None] + [base or 0.0]
    most = max(*shown, 1e-9) * 1.1
    inner = _WIDTH - _LEFT - _RIGHT

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / most

    parts = []
    for tick in _ticks(most):
        parts.append(_across(y(tick), "grid"))
        parts.append(_text(_LEFT - 5, y(tick) + 4, text.format(tick), "end"))
    if base is not None:
        parts.append(_across(y(base), "base"))
    step = inner / len(values)
    for place, bar in enumerate(values):
        x = _LEFT + step * place
        width = min(step * 0.6, 40)
        left = x + (step - width) / 2
        if bar.value is not None:
            top = y(bar.value)
            parts.append(
                f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{_HEIGHT - _BOTTOM - top:.1f}"><title>{text.format(bar.value)}</title></rect>'
            )
        if bar.mark is not None:
            ends = left - step * 0.1, left + width + step * 0.1
            parts.append(
                f'<line class="mark" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y(bar.mark):.1f}" '
                f'y2="{y(bar.mark):.1f}"><title>{text.format(bar.mark)}</title></line>'
            )
        parts.append(_text(x + step / 2, _HEIGHT - _BOTTOM + 14, bar.name))
    parts.append(_across(_HEIGHT - _BOTTOM, "axis"))
    parts.append(_text(_LEFT + inner / 2, _HEIGHT - 4, x_name))
    return svg(_WIDTH, _HEIGHT, title, parts)


def curves(title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> str:
    """Curves over logarithmic axes; all values are above 0."""
    every = [point for line in lines for point in line.points]
    x_of = _LogAxis([x for x, _ in every], _LEFT, _WIDTH - _RIGHT)
    y_of = _LogAxis([y for _, y in every], _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for tick in _round_numbers([y for _, y in every]):
        parts.append(_across(y_of(tick), "grid"))
        parts.append(_text(_LEFT - 5, y_of(tick) + 4, f"{tick:g}", "end"))
    for tick in _powers([x for x, _ in every]):
        label = f"{tick:g}"
        x = min(x_of(tick), _WIDTH - _DIGIT / 2 * len(label))  # all of it
        parts.append(_text(x, _HEIGHT - _BOTTOM + 14, label))
    for line in lines:
        places = [(x_of(x), y_of(y)) for x, y in line.points]
        if line.dots:
            parts += [
                f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places
            ]
        else:
            joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="{line.style}" points="{joined}"/>')
    parts.append(_across(_HEIGHT - _BOTTOM, "axis"))
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 4, x_name))
    parts.append(_text(2, 9, y_name, "start"))
    return svg(_WIDTH, _HEIGHT, title, parts)


def svg(
    width: float,
    height: float,
    title: str,
    parts: Sequence[str],
    style: str = "chart",
    in_pixels: bool = False,
) -> str:
    """A drawing of its own, with a title for those who cannot see it.

    Args:
        in_pixels: whether it is as large as it says, rather than as large as fits.
    """
    size = f'width="{width:.0f}" height="{height:.0f}" ' if in_pixels else ""
    return (
        f'<svg class="{style}" {size}viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _across(y: float, style: str) -> str:
    return f'<line class="{style}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _ticks(most: float) -> list[float]:
    """Three to six round numbers from 0 on."""
    rough = most / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * of for of in (1, 2, 2.5, 5, 10) if power * of >= rough * 0.99)
    return [step * at for at in range(int(most / step) + 1)]


def _powers(values: Sequence[float]) -> list[float]:
    """Powers of two among `values`, no more than six."""
    first, last = math.ceil(math.log2(min(values)) - 1e-9), math.floor(math.log2(max(values)) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / 6))
    return [2.0**power for power in range(first, last + 1, stride)]


def _round_numbers(values: Sequence[float]) -> list[float]:
    """Numbers such as 1, 2, 5, 10 among `values`: the finest that are no more than seven."""
    low, high = min(values), max(values)
    found: list[float] = []
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [
            of * 10.0**power for power in powers for of in steps if low <= of * 10.0**power <= high
        ]
        if len(found) <= 7:
            break
    return found


class _LogAxis:
    """From values to places between two ends."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        low, high = math.log(min(values)), math.log(max(values))
        self._low, self._span = low, (high - low) or 1.0
        self._first, self._length = first, last - first

    def __call__(self, value: float) -> float:
        return self._first + self._length * (math.log(value) - self._low) / self._span
