"""The results of a sweep: mean and standard deviation of each setting, as Markdown, CSV and JSON, and its curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from simsfl.attacks import spread
from simsfl.cli.report.figures import draw_settings, save
from simsfl.cli.report.page import figure_lines
from simsfl.cli.report.runs import Run, read_run
from simsfl.cli.report.settings import measures, summary_table
from simsfl.cli.sweep.axes import Point
from simsfl.cli.sweep.grid import Plan, Shortening
from simsfl.cli.sweep.outcomes import Outcomes
from simsfl.system.outputs import Outputs
from simsfl.ui.markdown import escaped, markdown

RESULTS = ("sweep.md", "sweep.csv", "sweep.json")
"""Names of the files that a sweep writes beside its figures and what belongs to single runs."""
_SEEDS = "Mean ± standard deviation over the seeds of each setting."


class Sweep(Outcomes):
    """The results of those runs of a sweep that have ended.

    Args:
        points: the settings.
        plans: the runs.
        out: the directory that holds the run directories.
        note: what is said of all of them.
        formats: formats of the figures.
        title: begin of the title, before the names of the flags that vary.
        most: most settings whose curves are drawn, the first ones; None for all.
        shortening: how schedules are shortened; None where they are whole.
    """

    def __init__(
        self,
        points: Sequence[Point],
        plans: Sequence[Plan],
        out: Path,
        note: str,
        formats: Sequence[str],
        title: str = "Sweep of",
        most: int | None = None,
        shortening: Shortening | None = None,
    ):
        names = list(dict.fromkeys(name.replace("_", " ") for point in points for name in point.values))
        super().__init__(f"{title} {', '.join(names) or 'seeds'}", plans, out, shortening)
        self.most = most
        self.values = {point.cell.name: point.values for point in points}
        self.note, self.formats = note, formats
        self._read: dict[str, Run] = {}
        self._drawn: dict[str, tuple[str, Figure]] = {}

    def _settings(self) -> dict[str, list[Run]]:
        """Return the runs of each setting that have ended, by the setting's name; read each once."""
        return {name: self.runs_of([plan for plan in self.plans if plan.cell.name == name]) for name in self.values}

    def runs_of(self, plans: Sequence[Plan]) -> list[Run]:
        """Return those of some runs that have ended."""
        ended = [plan.name for plan in plans if not plan.problem and self.is_finished(plan)]
        for name in ended:
            if name not in self._read:
                self._read[name] = read_run(self.out / name, name)
        return [self._read[name] for name in ended]

    def table(self) -> Table:
        """Return a table with a row for each setting: mean and standard deviation over its seeds."""
        settings = self._settings()
        table = summary_table({name or "all": runs for name, runs in settings.items()})
        table.title = self.title
        return table

    def missing(self) -> list[str]:
        """Return a line for each reason why runs have no result, with the name of the run or the number of runs."""
        return self.problems() + [f"{plan.name}: {self.trouble(plan)}" for plan in self.left]

    def entries(self) -> list[dict[str, Any]]:
        """Return what is known of each setting, as JSON takes it."""
        entries = []
        for name, runs in self._settings().items():
            found = [measures(run) for run in runs]
            values = {measure: [one[measure] for one in found if measure in one] for own in found for measure in own}
            entries.append(
                {
                    "setting": self.values[name],
                    "seeds": [run.config["seed"] for run in runs],
                    "steps": [run.steps[-1] for run in runs],
                    "runs": [run.name for run in runs],
                    "measures": {measure: {**spread(all_), "values": all_} for measure, all_ in values.items()},
                }
            )
        return entries

    def write(self) -> None:
        """Write the table as Markdown, CSV and JSON, without figures."""
        out, entries, table = Outputs(self.out), self.entries(), self.table()
        table.title = None  # the page has it
        problems = "".join(f"- {escaped(problem)}\n" for problem in self.missing())
        page = [
            f"# {escaped(self.title)}",
            markdown(table),
            _SEEDS,
            escaped(self.note),
            problems,
            "\n".join(figure_lines(self._drawn, self.formats)),
        ]
        out.write_text("sweep.md", "\n\n".join(part.strip() for part in page if part.strip()) + "\n")
        out.write_text("sweep.csv", _csv(entries))
        out.write_json("sweep.json", {"title": self.title, "note": self.note, "settings": entries})

    def write_figures(self) -> None:
        """Write the curves, and the page that shows them."""
        ended = [(name or "all", runs) for name, runs in self._settings().items() if runs]
        settings = dict(ended[: self.most])
        if settings:
            self._drawn = draw_settings(settings)
            save(self._drawn, Outputs(self.out), self.formats)
        self.write()


def _csv(entries: Sequence[dict[str, Any]]) -> str:
    """Return a line for each setting: its values, its seeds, and mean and standard deviation of each measure."""
    names = list(dict.fromkeys(name for entry in entries for name in entry["setting"]))
    found = list(dict.fromkeys(name for entry in entries for name in entry["measures"]))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*names, "seeds", "steps", *(f"{name}, {part}" for name in found for part in ("mean", "std"))])
    for entry in entries:
        cells = [entry["measures"].get(name, {}).get(part) for name in found for part in ("mean", "std")]
        listed = (" ".join(map(str, entry[name])) for name in ("seeds", "steps"))
        writer.writerow([*(entry["setting"].get(name) for name in names), *listed, *cells])
    return file.getvalue()
