"""Show the live view of a run that another process trains."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence

from rich.console import Console

from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics import ENDINGS, History, Status, read_records
from simsfl.system.outputs import Outputs
from simsfl.ui.arguments import Parser, fail, path
from simsfl.ui.dashboard import REFRESH_SECONDS, LiveView, PlainView, render, time_text

_STALE_SECONDS = 120
"""Seconds without news after which a run has probably been killed."""


class _Tail:
    """Follows the files of a run directory.

    Args:
        directory: the run directory.
        history: takes in the records.
    """

    def __init__(self, directory: RunDirectory, history: History):
        self.directory, self.history, self.offset = directory, history, 0

    def read(self) -> Status | None:
        """Take in new records; return the latest status, or None before there is one."""
        path = self.directory.metrics
        if path.exists():
            if path.stat().st_size < self.offset:  # cut back when the run was resumed
                self.history.clear()
                self.offset = 0
            for record, offset in read_records(path, self.offset):
                self.history.feed(record)
                self.offset = offset
        return Status.load(self.directory.live)


def main(argv: Sequence[str] | None = None) -> int:
    """Show the run until it ends; return the exit code."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("--once", action="store_true", help="show the present state of the run and stop")
    parser.add_argument("--svg", type=path, metavar="FILE", help="write the present view as a picture and stop")
    console = Console()
    try:
        arguments = parser.parse(argv)
        directory = RunDirectory(arguments.run)
        config = directory.read_config().config.to_dict()
        out = Outputs.of(arguments.svg, "svg") if arguments.svg else None
    except ValueError as error:
        return fail(error)
    history = History()
    tail = _Tail(directory, history)
    live = console.is_terminal or arguments.once
    started = time.time()
    try:
        status = tail.read()
        if out:
            picture = Console(file=io.StringIO(), record=True, width=100, force_terminal=True)
            picture.print(render(config, history, status))
            with out.replacing(arguments.svg.name) as file:
                picture.save_svg(str(file), title=f"watch.py {directory.path.resolve().name}")
            return 0
        with (LiveView if live else PlainView)(config, history, console) as view:
            while True:
                status = tail.read()
                view.show(status)
                if arguments.once or (status and status.activity in ENDINGS):
                    break
                if time.time() - (status.updated if status else started) > _STALE_SECONDS:
                    break
                time.sleep(REFRESH_SECONDS)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        return fail(error)
    if status:
        console.print()
        silent = time.time() - status.updated
        gone = status.activity not in ENDINGS and silent > _STALE_SECONDS
        console.print(f"no news for {time_text(silent)}; killed?" if gone else status.activity)
    return 0
