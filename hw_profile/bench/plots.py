"""Plots as SVG, written by hand: a device has no plotting library, and these need only a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _LEFT, _RIGHT = 640, 150, 90
"""Width of a plot and of its margins, in pixels."""
_INK, _MUTED, _GRID = "#1f2328", "#656d76", "#d0d7de"
_COLOURS = ("#0969da", "#bf8700", "#1a7f37", "#8250df")


def bars(title: str, values: Mapping[str, float], unit: str, marks: Mapping[str, float] | None = None) -> str:
    """Return a plot with a horizontal bar for each value, and its number.

    Args:
        title: heading of the plot.
        values: value of each bar by name.
        unit: unit of the values.
        marks: a second value of some bars, such as a percentile, drawn as a thin line.
    """
    marks = marks or {}
    row, top = 26, 40
    height = top + row * len(values) + 12
    largest = max([*values.values(), *marks.values(), 1e-12])
    scale = (_WIDTH - _LEFT - _RIGHT) / largest
    parts = [_heading(title)]
    for index, (name, value) in enumerate(values.items()):
        y = top + row * index
        parts.append(_text(_LEFT - 8, y + 15, name, anchor="end"))
        parts.append(
            f'<rect x="{_LEFT}" y="{y + 3}" width="{scale * value:.1f}" height="16" rx="2" fill="{_COLOURS[0]}"/>'
        )
        end = value
        if name in marks:
            end = max(value, marks[name])
            x = _LEFT + scale * marks[name]
            middle = y + 11
            parts.append(_line([(_LEFT + scale * value, middle), (x, middle)], _MUTED))
            parts.append(_line([(x, y + 6), (x, y + 16)], _MUTED))
        parts.append(_text(_LEFT + scale * end + 6, y + 15, f"{_number(value)} {unit}", colour=_MUTED))
    return _svg(parts, height)


def curve(
    title: str, points: Sequence[tuple[float, float]], unit: str, spans: Mapping[str, tuple[float, float]]
) -> str:
    """Return a plot of values over time, with named spans of time shaded.

    Args:
        title: heading of the plot.
        points: seconds and value of each point, in order of time.
        unit: unit of the values.
        spans: begin and end of each span by name, in seconds.
    """
    top, bottom, height = 44, 210, 240
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1e-9)
    low, high = (1.1 * bound(0.0, *(value for _, value in points)) for bound in (min, max))
    high = high if high > low else 1.0
    left = 56

    def place(time: float, value: float) -> tuple[float, float]:
        across = (time - first) / (last - first)
        return left + across * (_WIDTH - left - 16), bottom - (value - low) / (high - low) * (bottom - top)

    parts = [_heading(title)]
    for index, (name, (begin, end)) in enumerate(spans.items()):
        x1, x2 = (place(min(max(time, first), last), low)[0] for time in (begin, end))
        colour = _COLOURS[index % len(_COLOURS)]
        parts.append(
            f'<rect x="{x1:.1f}" y="{top}" width="{max(x2 - x1, 1):.1f}" height="{bottom - top}" fill="{colour}" '
            'fill-opacity="0.12"/>'
        )
        parts.append(_text(x1 + 4, top + 12, name, colour=colour, size=11))
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        y = place(first, value)[1]
        parts.append(_line([(left, y), (_WIDTH - 16, y)], _GRID))
        parts.append(_text(left - 6, y + 4, _number(value), anchor="end", colour=_MUTED, size=11))
    parts.append(_line([place(*point) for point in points], _COLOURS[0], 1.6))
    parts.append(_text(left, height - 8, f"0 to {_number(last - first)} s; {unit}", colour=_MUTED, size=11))
    return _svg(parts, height)


def _number(value: float) -> str:
    """Return a number as text, with three significant digits or all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _heading(title: str) -> str:
    """Return the title above a plot."""
    return _text(12, 22, title, size=15, weight=600)


def _text(
    x: float, y: float, content: str, *, anchor: str = "start", colour: str = _INK, size: int = 12, weight: int = 400
) -> str:
    """Return words at a place."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" '
        f'font-weight="{weight}">{escape(content)}</text>'
    )


def _line(points: Sequence[tuple[float, float]], colour: str, width: float = 1.0) -> str:
    """Return a line through points."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _svg(parts: Sequence[str], height: int) -> str:
    """Return a whole picture; its background is white, so that it can be read on dark pages, too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="system-ui, sans-serif">'
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>' + "".join(parts) + "</svg>\n"
    )
