"""Show the live view of a run that another process trains."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence

from simsfl.cli.flags import add_plugin_flag
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics import ENDINGS, History, Status
from simsfl.runs.tail import Tail
from simsfl.system.console import Output
from simsfl.system.messages import visible
from simsfl.system.outputs import Outputs
from simsfl.system.programs import called
from simsfl.ui.arguments import Parser, fail, path
from simsfl.ui.dashboard import REFRESH_SECONDS, LiveView, PlainView, render, time_text

_STALE_SECONDS = 120
"""Seconds without news after which a run has probably been killed."""


class _Watched:
    """The run that is watched.

    Args:
        directory: the run directory.
        history: gets the records.
    """

    def __init__(self, directory: RunDirectory, history: History):
        self.live, self.history, self.tail = directory.live, history, Tail(directory.metrics)

    def read(self) -> Status | None:
        """Add new records to the history; return the latest status, or None before there is one."""
        if self.tail.cut_back():
            self.history.clear()
        for record in self.tail.records():
            self.history.feed(record)
        return Status.load(self.live)


def _follow(watched: _Watched, view: LiveView | PlainView, console: Output) -> Status | None:
    """Show a run until it ends, is silent for too long, or nobody reads it any more; return its latest status."""
    started = time.time()
    with view:
        while True:
            status = watched.read()
            view.show(status)
            silent = time.time() - (status.updated if status else started)
            if console.lost or (status and status.activity in ENDINGS) or silent > _STALE_SECONDS:
                return status
            time.sleep(REFRESH_SECONDS)


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument("run", type=path, metavar="RUN_DIR", help="run directory")
    result.add_argument("--once", action="store_true", help="show the current state of the run once, and end")
    result.add_argument("--svg", type=path, metavar="FILE", help="write the current view as a picture, and end")
    add_plugin_flag(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Show the run until it ends; return the exit code."""
    console = Output("auto")
    try:
        arguments = parser().parse(argv)
        directory = RunDirectory(arguments.run)
        config = directory.read_config().config.to_dict()
        out = Outputs.of(arguments.svg, "svg") if arguments.svg else None
    except ValueError as error:
        return fail(error)
    history = History()
    watched = _Watched(directory, history)
    try:
        status = watched.read()
        if not status and not arguments.once and not out:
            console.say("no program is training this run, or it has just begun: there is no live.json yet")
        if out:
            picture = Output(file=io.StringIO(), record=True, width=100, color_system="truecolor")
            picture.print(render(config, history, status))
            title = visible(f"{called('watch')} {directory.path.resolve().name}")
            with out.replacing(arguments.svg.name) as file:
                picture.save_svg(str(file), title=title)
            console.say(f"wrote {arguments.svg}")
            return 0
        if arguments.once or (status and status.activity in ENDINGS and not console.live):
            console.print(render(config, history, status))
        else:
            status = _follow(watched, (LiveView if console.live else PlainView)(config, history, console), console)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        return fail(error)
    if status:
        console.print()
        silent = time.time() - status.updated
        gone = status.activity not in ENDINGS and silent > _STALE_SECONDS
        console.say(f"no news for {time_text(silent)}; killed?" if gone else status.activity)
    return 0
