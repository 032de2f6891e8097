"""Runs as one page for a browser, which needs nothing else: no network, and no other file."""

from __future__ import annotations

import gzip
import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from simsfl.cli.report.cells import differences, notes, table_of_runs
from simsfl.cli.report.charts import charts, settings_shown
from simsfl.cli.report.figures import FEW
from simsfl.cli.report.page import LEFT_OUT, SEEDS
from simsfl.cli.report.runs import Run
from simsfl.cli.report.settings import grouped, repeated, summary_table
from simsfl.runs.directory import RunDirectory

_CHARTED = ("curves", "divergence", "communication", "resistance", "privacy", "fleet")
"""File names of the figures that the page has as charts instead."""
_TEMPLATES = Environment(
    loader=PackageLoader("simsfl.cli.report", "template"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def interactive_page(
    runs: Sequence[Run], pictures: Sequence[tuple[str, bytes]], state: Sequence[Sequence[str]] = ()
) -> str:
    """Return the page of some runs as HTML.

    Args:
        runs: the runs.
        pictures: titles and content of pictures in PNG format.
        state: rows of a table of how far runs have come; with one, the page asks its server for `news`.
    """
    page = _TEMPLATES.get_template("page.html").render(
        names=[run.name for run in runs],
        drawn=to_json_plotly(_drawn(runs)),
        tables=_tables(runs, state),
        pictures=[(title, b64encode(png).decode()) for title, png in pictures],
        left_out=LEFT_OUT if len(runs) > FEW else "",
        live=bool(state),
        library=_library(),
    )
    return _encodable(page)


def news(runs: Sequence[Run], state: Sequence[Sequence[str]]) -> str:
    """Return what changes on the page while runs go on, as one line of JSON: settings, charts and tables.

    Args:
        runs: the runs.
        state: rows of the table of how far they have come.
    """
    return _encodable(to_json_plotly({**_drawn(runs), "html": _tables(runs, state)}))


def _encodable(text: str) -> str:
    """Return a text with bytes of file names that are no characters written as in a Python string."""
    return text.encode(errors="backslashreplace").decode()


def _drawn(runs: Sequence[Run]) -> dict[str, Any]:
    """Return "settings" and "charts" as the page draws them."""
    settings = grouped(runs)
    return {"settings": settings_shown(settings), "charts": charts(settings)}


def _tables(runs: Sequence[Run], state: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the HTML of the page's tables, by the names of the page's parts that have them."""
    settings = grouped(runs)
    results = _cells_of(settings) if repeated(settings) else []
    parts = {
        "overview": {"state": state, "notes": notes(runs), "results": results, "seeds": SEEDS},
        "details": {"runs": table_of_runs(runs), "differences": differences(runs)},
    }
    return {name: _TEMPLATES.get_template(f"{name}.html").render(**part) for name, part in parts.items()}


def pictures_of(runs: Sequence[Run], figures: Mapping[str, tuple[str, Figure]]) -> list[tuple[str, bytes]]:
    """Return titles and PNG files of figures that are no charts, and of reconstructions by attacks on the runs.

    Args:
        runs: the runs; of more than `FEW`, reconstructions are left out.
        figures: figures with their titles, as `simsfl.cli.report.figures.draw` returns them.
    """
    found = []
    for stem, (title, figure) in figures.items():
        if stem not in _CHARTED:
            file = io.BytesIO()
            figure.suptitle("")  # the page has the title
            figure.savefig(file, format="png", dpi=150)
            found.append((title, file.getvalue()))
    return found + [sheet for run in runs if len(runs) <= FEW for sheet in _sheets(run)]


def pictures_in(run: Run, among: int) -> list[tuple[str, bytes]]:
    """Return titles and PNG files of what earlier reports and attacks have drawn in a run directory.

    Args:
        run: the run.
        among: how many runs are shown; of more than `FEW`, it is nothing.
    """
    if among > FEW:
        return []
    names = RunDirectory(run.path).outputs.owned("figures")
    stems = [Path(name).stem for name in names if name.endswith(".png")]
    found = [(f"{stem} of {run.name}", f"figures/{stem}.png") for stem in stems if stem not in _CHARTED]
    return _files(run, found) + _sheets(run)


def _sheets(run: Run) -> list[tuple[str, bytes]]:
    """Return title and PNG file of each sheet of reconstructions of a run."""
    return _files(run, [(f"Reconstructions by {name} of {run.name}", f"attacks/{name}.png") for name in run.attacks])


def _files(run: Run, titles: Sequence[tuple[str, str]]) -> list[tuple[str, bytes]]:
    """Return titles and content of those files in a run directory that are as simsfl has written them.

    Links are left out, also those to other directories, so that nothing gets on the page that is not of the run.

    Args:
        run: the run.
        titles: titles and names of the files.
    """
    outputs, inside = RunDirectory(run.path).outputs, run.path.resolve()
    kept = [(title, name) for title, name in titles if (inside / name).resolve() == inside / name]
    return [(title, (run.path / name).read_bytes()) for title, name in kept if outputs.owns(name)]


def _cells_of(settings: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """Return the rows of the table of settings, its heading among them."""
    columns = [[str(column.header), *map(str, column.cells)] for column in summary_table(settings).columns]
    return [list(row) for row in zip(*columns, strict=True)]


@cache
def _library() -> str:
    """Return plotly's program for browsers, which takes a third of its size: compressed with gzip, in base64."""
    return b64encode(gzip.compress(get_plotlyjs().encode())).decode()
