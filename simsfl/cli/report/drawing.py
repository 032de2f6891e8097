"""What figures of the report have in common: axes, styles of settings, curves with bands, and legends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from simsfl.cli.report.curves import Curve

mpl.rcParams.update({"figure.dpi": 120, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9, "pdf.fonttype": 42})


_POINTS = 7
"""Size of the letters of legends."""
_COLUMNS, _HANDLE = 4, 0.5
"""Most columns of a legend below a figure, and inches of a column beside its label."""


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **how: Any) -> tuple[Figure, Any]:
    """Return a figure with axes, as ``pyplot.subplots`` does, which would warn of more than 20 figures at a time."""
    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, **how)


def style(number: int) -> dict[str, Any]:
    """Return colour and line of a setting's curves: colours first, and other lines where these are used up."""
    return {"color": f"C{number % 10}", "linestyle": ("-", "--", "-.", ":")[number // 10 % 4], "linewidth": 1.3}


def legend(figure: Figure, axis: Any, room: int = 2) -> None:
    """Show the labels of an axis in one legend: below the figure where there are more than it has room for."""
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if len(handles) <= room:
        axis.legend(handles.values(), handles.keys(), fontsize=_POINTS)
    else:
        below(figure, handles)


def below(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Show what stands for each label below a figure, in columns that fit; the figure grows by rows beyond the first.

    Args:
        figure: the figure.
        handles: a line or patch by its label, which may have several lines.
    """
    lines = [label.splitlines() or [""] for label in handles]
    longest = max(len(line) for own in lines for line in own)
    columns = max(1, min(_COLUMNS, int(figure.get_figwidth() / (_HANDLE + 0.47 * _POINTS / 72 * longest))))
    rows = -(-len(lines) // columns)
    height = max(len(own) for own in lines) * 1.4 * _POINTS / 72
    figure.set_figheight(figure.get_figheight() + (rows - 1) * height)
    figure.legend(handles.values(), handles.keys(), fontsize=_POINTS, ncols=columns, loc="outside lower center")


def band(axis: Any, places: str, curve: Curve, how: dict[str, Any], label: str) -> None:
    """Draw the mean of several runs' values, and a band of their standard deviation.

    Args:
        axis: the axis.
        places: name of what the values are drawn against, a key of `Curve.at`.
        curve: the values.
        how: style of the line.
        label: its label.
    """
    x, mean, std = curve.at[places], curve.mean, curve.std
    axis.plot(x, mean, label=label, **how)
    if std is not None:
        axis.fill_between(x, mean - std, mean + std, color=how["color"], alpha=0.2, linewidth=0)
