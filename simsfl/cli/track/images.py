"""The images of a run that trackers get: figures of the report, and sheets of reconstructions."""

from __future__ import annotations

from pathlib import Path

from simsfl import Simulation
from simsfl.cli.report.figures import draw, draw_settings, draw_simulation, save
from simsfl.cli.report.runs import read_run
from simsfl.cli.report.settings import grouped
from simsfl.runs.directory import RunDirectory
from simsfl.system.outputs import Outputs


def draw_into(place: Path, directory: RunDirectory, simulation: Simulation | None = None) -> dict[str, Path]:
    """Draw the figures of a run's report into the directory `place`; return the PNG files of all images by name.

    Sheets of reconstructions, which ``attack.py`` has drawn, are among them, by names such as
    ``reconstructions/res_normN4C64``.

    Args:
        place: an empty directory.
        directory: the directory of the run, whose records and results are written.
        simulation: the run where it ended, None to load it.
    """
    run = read_run(directory.path, directory.path.resolve().name)
    figures = draw_settings(grouped([run])) | draw_simulation(simulation) if simulation else draw([run])
    save(figures, Outputs(place))
    sheets = {f"reconstructions/{name}": directory.attacks / f"{name}.png" for name in run.attacks}
    drawn = {f"figures/{name}": place / "figures" / f"{name}.png" for name in figures}
    return drawn | {name: file for name, file in sheets.items() if file.is_file()}
