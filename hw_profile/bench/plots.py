"""Plots as SVG by hand: a device has no plotting library, and these are a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, RIGHT = 640, 150, 90
INK, MUTED, GRID = "#1f2328", "#656d76", "#d0d7de"
COLOURS = ("#0969da", "#bf8700", "#1a7f37", "#8250df")


def bars(title: str, values: Mapping[str, float], unit: str, marks: Mapping[str, float] | None = None) -> str:
    """A horizontal bar for each value with its number; `marks` are thin lines on the bars, such as a percentile."""
    marks = marks or {}
    row, top = 26, 40
    height = top + row * len(values) + 12
    largest = max([*values.values(), *marks.values(), 1e-12])
    scale = (WIDTH - LEFT - RIGHT) / largest
    parts = [heading(title)]
    for index, (name, value) in enumerate(values.items()):
        y = top + row * index
        parts.append(text(LEFT - 8, y + 15, name, anchor="end"))
        parts.append(
            f'<rect x="{LEFT}" y="{y + 3}" width="{scale * value:.1f}" height="16" rx="2" fill="{COLOURS[0]}"/>'
        )
        end = value
        if name in marks:
            end = max(value, marks[name])
            x = LEFT + scale * marks[name]
            middle = y + 11
            parts.append(line([(LEFT + scale * value, middle), (x, middle)], MUTED))
            parts.append(line([(x, y + 6), (x, y + 16)], MUTED))
        parts.append(text(LEFT + scale * end + 6, y + 15, f"{number(value)} {unit}", colour=MUTED))
    return svg(parts, height)


def curve(
    title: str, points: Sequence[tuple[float, float]], unit: str, spans: Mapping[str, tuple[float, float]]
) -> str:
    """Values over seconds, with named spans of time shaded."""
    top, bottom, height = 44, 210, 240
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1e-9)
    high = 1.1 * max(value for _, value in points) or 1.0
    left = 56

    def place(time: float, value: float) -> tuple[float, float]:
        across = (time - first) / (last - first)
        return left + across * (WIDTH - left - 16), bottom - value / high * (bottom - top)

    parts = [heading(title)]
    for index, (name, (begin, end)) in enumerate(spans.items()):
        x1, x2 = (place(min(max(time, first), last), 0)[0] for time in (begin, end))
        colour = COLOURS[index % len(COLOURS)]
        parts.append(
            f'<rect x="{x1:.1f}" y="{top}" width="{max(x2 - x1, 1):.1f}" height="{bottom - top}" fill="{colour}" '
            'fill-opacity="0.12"/>'
        )
        parts.append(text(x1 + 4, top + 12, name, colour=colour, size=11))
    for share in (0.0, 0.5, 1.0):
        value = share * high
        y = place(first, value)[1]
        parts.append(line([(left, y), (WIDTH - 16, y)], GRID))
        parts.append(text(left - 6, y + 4, number(value), anchor="end", colour=MUTED, size=11))
    parts.append(line([place(*point) for point in points], COLOURS[0], 1.6))
    parts.append(text(left, height - 8, f"0 to {number(last - first)} s; {unit}", colour=MUTED, size=11))
    return svg(parts, height)


def number(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def heading(title: str) -> str:
    """Above a plot."""
    return text(12, 22, title, size=15, weight=600)


def text(
    x: float, y: float, content: str, *, anchor: str = "start", colour: str = INK, size: int = 12, weight: int = 400
) -> str:
    """Words at a place."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" '
        f'font-weight="{weight}">{escape(content)}</text>'
    )


def line(points: Sequence[tuple[float, float]], colour: str, width: float = 1.0) -> str:
    """Through points."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def svg(parts: Sequence[str], height: int) -> str:
    """A whole picture, on white, so that it reads on dark pages too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>' + "".join(parts) + "</svg>\n"
    )
