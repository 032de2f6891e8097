"""Tell a run in the seconds, joules and bytes of a fleet of devices, without training it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from simsfl.cli.flags import add_plugin_flag
from simsfl.cli.fleet.devices import List
from simsfl.cli.fleet.table import fleet_table
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics_log import read_records
from simsfl.system.console import Output
from simsfl.system.messages import visible
from simsfl.system.outputs import Outputs
from simsfl.system.progress import watched
from simsfl.ui.arguments import Parser, fail, path
from simsfl.ui.fleet import TIME_UNITS, WAITS, unit_for

if TYPE_CHECKING:
    from simsfl.simulation import Simulation

_JSON = "fleet.json"
_FIGURE = "fleet.png"
_TABLE = "fleet.csv"


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument("run", type=path, metavar="RUN", help="run directory")
    result.add_argument(
        "--fleet", type=path, required=True, metavar="FILE", help="TOML file of the fleet (docs/fleet.md)"
    )
    result.add_argument(
        "--out", type=path, metavar="DIR", help="directory to write figure and figures into (default: RUN/fleet)"
    )
    result.add_argument("--list", action=List, help="print the device profiles that come with simsfl, and exit")
    add_plugin_flag(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the run, print tables, write a figure and a JSON file; return the exit code."""
    try:
        arguments = parser().parse(argv)
        from simsfl.cli.fleet.figures import draw  # noqa: PLC0415  (imports torch: mistakes in flags answer at once)
        from simsfl.cli.fleet.story import told  # noqa: PLC0415  (the same)
        from simsfl.config.fleet import read_fleet  # noqa: PLC0415  (the same)
        from simsfl.fleet.costs import Costs  # noqa: PLC0415  (the same)
        from simsfl.fleet.timeline import Timeline  # noqa: PLC0415  (the same)
        from simsfl.setup import assembly  # noqa: PLC0415  (the same)
        from simsfl.simulation import Simulation  # noqa: PLC0415  (the same)

        out = Outputs(arguments.out or arguments.run / "fleet")
        out.check(_JSON, _FIGURE, _TABLE)
        fleet = read_fleet(arguments.fleet)
        simulation = Simulation.load(arguments.run, device="cpu")
        parts, rounds = simulation.parts, simulation.progress.round_index
        costs = Costs(parts.config, parts.model, parts.cost, parts.batches, fleet)
        averaged = assembly.averaged(parts.config, parts.steps)
        timeline = Timeline(costs, parts.attendance, averaged, decides=False)
        if not rounds:
            raise ValueError(f"run: {arguments.run} has no finished round; allowed: a run with one or more")
        retold = (timeline.told(number) for number in watched(range(rounds), "telling"))
        story, clients = told(costs, retold, _evaluations(arguments.run))
        console = Output()
        console.print(fleet_table(story["groups"]))
        console.print(_spent(story))
        console.say(_result(story))
        if measured := _measured_server(simulation):
            console.say(measured)
        out.write_json(_JSON, story)
        with out.replacing(_FIGURE) as file:
            draw(story).savefig(file, format="png")
        out.write_text(_TABLE, clients.table(costs))
        console.say(f"wrote {out.path / _JSON}, {out.path / _TABLE} and {out.path / _FIGURE}")
    except (ValueError, OSError) as error:
        return fail(error)
    return 0


def _measured_server(simulation: Simulation) -> str:
    """Return one line about what the run's server took where it was trained; empty if that was not measured."""
    parts, progress = simulation.parts, simulation.progress
    steps = progress.round_index * progress.steps + progress.step_index
    seconds = simulation.clock.seconds().get("server", 0.0) / steps
    if not seconds:
        return ""
    from simsfl.cost.model import server_flops  # noqa: PLC0415  (imports torch: mistakes in flags answer at once)

    work = sum(parts.batches) * server_flops(parts.model, **parts.config.server_passes)
    return (
        f"the machine that trained took {1000 * seconds:,.3g} ms for a step of the server: step_ms = "
        f"{1000 * seconds:.3g}, or gflop_s = {work / seconds / 1e9:.3g}, in [server] means this machine"
    )


def _evaluations(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's evaluations."""
    return [record for record, _ in read_records(RunDirectory(run).metrics) if record["event"] == "evaluation"]


def _spent(story: dict[str, Any]) -> Table:
    """Return a table of what the clients of each group did."""
    table = Table(box=SIMPLE, title="on average, a client")
    for column in ("group", "computes [s]", "transfers [s]", "waits [s]", "energy [Wh]"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for own in story["groups"]:
        times = (f"{own[f'{part}_seconds']:,.1f}" for part in ("compute", "transfer", "wait"))
        table.add_row(visible(own["name"]), *times, "-" if own["wh"] is None else f"{own['wh']:.3g}")
    return table


def _result(story: dict[str, Any]) -> str:
    """Return one line about the whole run."""
    phases = story["phases"]
    whole = sum(phases.values())
    shares = ", ".join(f"{WAITS[phase][0]} {100 * own / whole:.0f} %" for phase, own in phases.items() if own)
    unit, scale = unit_for(story["hours"], TIME_UNITS)
    last = story["evaluations"][-1] if story["evaluations"] else None
    reached = f", kNN {last['knn_top1']:.2f} % after round {last['round']}" if last else ""
    return f"{scale * story['hours']:,.3g} {unit} of the fleet{reached}; all waited for: {shares}"
