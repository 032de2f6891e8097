"""Curves of runs as figures of plotly, which a browser lets one hover, zoom and switch off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from simsfl.algorithm.communication import Exchange
from simsfl.cli.report import curves
from simsfl.cli.report.curves import ENERGY, HOURS, ROUNDS, SENT, STEPS, Curve
from simsfl.cli.report.figures import similarity_of_attackers
from simsfl.cli.report.privacy import points
from simsfl.cli.report.runs import Run
from simsfl.cli.report.settings import counted

_COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)
"""Colours of settings: those of matplotlib's figures, which have the same setting in the same colour."""
_DASHES = ("solid", "dash", "dashdot", "dot")
"""Lines of settings, one for each time that all colours are used up."""
_SYMBOLS = ("diamond", "square", "triangle-up", "x", "star", "cross", "triangle-down", "pentagon")
"""Markers of probes and attacks."""
_SMOOTHED = "Means over a fortieth of the steps around each."
_BAND = "Of several seeds: mean, with a band of one standard deviation."
_UNIFIED = 8
"""Most lines of a chart whose values are shown together where one of them is hovered."""


@dataclass(frozen=True)
class _Line:
    """A line of a chart."""

    setting: int
    """Number of the setting that it is of."""
    name: str
    """Its name where it is hovered."""
    curve: Curve
    style: dict[str, Any] = field(default_factory=dict)
    """What differs from the usual line, as `plotly.graph_objects.Scatter` takes it."""


def settings_shown(settings: Mapping[str, Sequence[Run]]) -> list[dict[str, str]]:
    """Return "label", "colour" and "dash" of each setting, in the order of their numbers in charts."""
    return [{"label": label, **_look(number)} for number, label in enumerate(counted(settings))]


def charts(settings: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return the charts that the runs have records for.

    Args:
        settings: the runs of each setting, by its label.

    Returns:
        for each chart its "id", "title" and "caption", and "figures": its traces ("data") and layout as JSON takes
        them, by the name of the horizontal axis. The "meta" of a trace is the number of its setting.
    """
    runs = [run for own in settings.values() for run in own]
    drawn = [
        _chart("loss", "Contrastive loss", _SMOOTHED, _of_steps(settings, "losses")),
        _chart("contrast", "Contrastive accuracy [%]", _SMOOTHED, _of_steps(settings, "contrast_top1")),
        _accuracy(settings),
        _chart("spread", "Spread of outputs [%]", "0 where a network has collapsed.", _lines(settings, curves.spread)),
        _chart("divergence", "Distance of clients' models to their average", "", _lines(settings, curves.divergence)),
    ]
    if any(record["communication"] != Exchange.BOTH_WAYS.value for run in runs for record in run.history.rounds):
        saved = _lines(settings, lambda own: curves.of_each_round(own, "bytes_saved_per_client", 1e-6))
        drawn.append(_chart("saved", "Communication saved per client [MB]", "", saved))
    if any(run.history.fleet for run in runs):
        missing = _lines(settings, curves.absent)
        drawn.append(_chart("absent", "Clients of the fleet late or away [%]", "Of those drawn for a round.", missing))
    if any(record["attackers_ssim"] is not None for run in runs for record in run.history.rounds):
        after = _lines(settings, lambda own: curves.of_each_round(own, "attackers_ssim"))
        caption = f"{similarity_of_attackers(settings)}, after they have learnt from a step."
        drawn.append(_chart("resistance", "Reconstructions of simulated attackers", caption, after))
    if any(run.attacks for run in runs):
        drawn.append(_privacy(settings))
    return [one for one in drawn if one]


def _look(number: int) -> dict[str, str]:
    """Return "colour" and "dash" of the setting with this number."""
    count = len(_COLOURS)
    return {"colour": _COLOURS[number % count], "dash": _DASHES[number // count % len(_DASHES)]}


def _lines(settings: Mapping[str, Sequence[Run]], found: Callable[[Sequence[Run]], Curve | None]) -> list[_Line]:
    """Return a line with a marker at each place for each of the settings that have such a curve."""
    each = [(number, label, found(own)) for number, (label, own) in enumerate(settings.items())]
    return [_Line(number, label, curve, {"mode": "lines+markers"}) for number, label, curve in each if curve]


def _of_steps(settings: Mapping[str, Sequence[Run]], name: str) -> list[_Line]:
    """Return the smoothed values of steps as a line for each setting, over those of steps if it is a single run.

    Args:
        settings: the runs of each setting, by its label.
        name: the attribute of runs that has the values.
    """
    lines = []
    for number, (label, own) in enumerate(settings.items()):
        if found := curves.of_steps(own, [getattr(run, name) for run in own]):
            if len(settings) == len(own) == 1:
                faint = {"opacity": 0.3, "line": {"width": 1}, "hoverinfo": "skip"}
                lines.append(_Line(number, "each step", found.thinned(), faint))
            lines.append(_Line(number, label, curves.smoothed(found).thinned()))
    return lines


def _accuracy(settings: Mapping[str, Sequence[Run]]) -> dict[str, Any] | None:
    """Return the chart of the accuracy of kNN, with that on raw pixels as a level, and with probes at the end."""
    runs = [run for own in settings.values() for run in own]
    lines = _lines(settings, curves.knn)
    marks = dict(zip(dict.fromkeys(kind for run in runs for kind in run.history.probes), _SYMBOLS, strict=False))
    for kind, symbol in marks.items():
        style = {"mode": "markers", "marker": {"symbol": symbol, "size": 10}}
        for number, (label, own) in enumerate(settings.items()):
            probes = [run.history.probes.get(kind) for run in own]
            if found := curves.of_rounds(own, [{one["round"]: one["top1"]} if one else {} for one in probes]):
                lines.append(_Line(number, f"{label}, {kind} probe", found, style))
    pixels = {run.history.untrained("pixel_knn_top1") for run in runs} - {None}
    caption = "kNN monitor on the test images" + "; dotted: kNN on raw pixels" * bool(pixels) + "."
    if marks:
        named = ", ".join(f"{symbol.replace('-', ' ')} for {kind}" for kind, symbol in marks.items())
        caption += f" Markers at the end are probes: {named}."
    return _chart("accuracy", "Accuracy [%]", caption, lines, levels=sorted(pixels))


def _privacy(settings: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Return the chart of accuracy against how well attacks reconstruct, with a marker for each setting and attack."""
    axis, found = points(settings)
    symbols = dict(zip(dict.fromkeys(point.attack for point in found), _SYMBOLS, strict=False))
    figure, numbers = go.Figure(), {label: number for number, label in enumerate(settings)}
    for point in found:
        number, name = numbers[point.setting], escape(f"{point.setting}, {point.attack}", quote=False)
        x, y = (
            {"at": one["mean"], "bar": {"array": [one["std"] or 0.0]}} for one in (point.similarity, point.accuracy)
        )
        marker = {"size": 10, "color": _look(number)["colour"], "symbol": symbols.get(point.attack, "circle")}
        bars = {"error_x": x["bar"], "error_y": y["bar"]}
        figure.add_scatter(x=[x["at"]], y=[y["at"]], mode="markers", marker=marker, name=name, meta=number, **bars)
    figure.update_layout(xaxis_title=axis, hovermode="closest")
    named = ", ".join(f"{symbol.replace('-', ' ')} for {attack}" for attack, symbol in symbols.items())
    caption = (
        f"Less similar is more private. Markers: {named}. Accuracy is that of the linear probe, or of kNN without one."
    )
    return {"id": "privacy", "title": "Accuracy [%] against reconstructions", "caption": caption} | _figures(
        {axis: figure}
    )


def _chart(
    name: str, title: str, caption: str, lines: Sequence[_Line], levels: Sequence[float] = ()
) -> dict[str, Any] | None:
    """Return a chart of lines, None if there are no lines.

    Args:
        name: its "id".
        title: what is drawn, with its unit.
        caption: what readers need to know.
        lines: its lines, all with the same axes.
        levels: values at which a dotted line goes through the chart.
    """
    if not lines:
        return None
    several = any(len(line.curve.values) > 1 for line in lines)
    banded = any(line.curve.std is not None for line in lines)
    band = _BAND if several else "The band is one standard deviation over the cohort." if banded else ""
    axes = [axis for axis in (STEPS, SENT, HOURS, ENERGY) if any(axis in line.curve.at for line in lines)] or [ROUNDS]
    figures = {}
    for axis in axes:
        traces = [trace for line in lines if axis in line.curve.at for trace in _traces(line, axis)]
        figures[axis] = figure = go.Figure(traces)
        figure.update_layout(xaxis_title=axis, hovermode="x unified" if len(lines) <= _UNIFIED else "closest")
        for level in levels:
            figure.add_hline(level, line={"dash": "dot", "width": 1.5, "color": "gray"})
    return {"id": name, "title": title, "caption": f"{caption} {band}".strip()} | _figures(figures)


def _traces(line: _Line, axis: str) -> list[go.Scatter]:
    """Return the band of a line, if it has one, and the line itself, against one of its axes."""
    x, mean, std = line.curve.at[axis], line.curve.mean, line.curve.std
    look, name = _look(line.setting), escape(line.name, quote=False)
    style = {"mode": "lines", "marker": {}, "line": {}, "name": name, **line.style}
    style["line"] = {"color": look["colour"], "dash": look["dash"], **style["line"]}
    style["marker"] = {"color": look["colour"], **style["marker"]}
    own = go.Scatter(x=_short(x), y=_short(mean), meta=line.setting, **style)
    if std is None:
        return [own]
    around = {"x": np.concatenate([x, x[::-1]]), "y": np.concatenate([mean + std, (mean - std)[::-1]])}
    filled = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": look["colour"], "opacity": 0.2}
    shape = {name: _short(values) for name, values in around.items()}
    return [go.Scatter(**shape, meta=line.setting, hoverinfo="skip", **filled), own]


def _short(values: np.ndarray) -> np.ndarray:
    """Return values in single precision, which is enough for a picture and half as long."""
    return values.astype(np.float32)


def _figures(figures: Mapping[str, go.Figure]) -> dict[str, Any]:
    """Return "figures" of a chart: each as a dict, without plotly's own legend and look, which the page has instead."""
    for figure in figures.values():
        figure.update_layout(showlegend=False, template="none")
    return {"figures": {axis: figure.to_dict() for axis, figure in figures.items()}}
