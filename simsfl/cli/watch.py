"""Show the live view of a run that another process trains, or of several in a browser."""

from __future__ import annotations

import io
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

from simsfl.cli.flags import add_plugin_flag
from simsfl.runs.directory import RunDirectory
from simsfl.runs.history import History
from simsfl.runs.metrics import ENDINGS, Status
from simsfl.runs.tail import Tail
from simsfl.system.console import Output
from simsfl.system.messages import shortened, visible
from simsfl.system.outputs import Outputs
from simsfl.system.programs import called
from simsfl.ui.arguments import Parser, fail, path
from simsfl.ui.dashboard import REFRESH_SECONDS, LiveView, PlainView, render
from simsfl.ui.status import STALE_SECONDS, gone


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
            if console.lost or (status and status.activity in ENDINGS) or silent > STALE_SECONDS:
                return status
            time.sleep(REFRESH_SECONDS)


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument("runs", type=path, nargs="+", metavar="RUN_DIR", help="run directory; several with --serve")
    result.add_argument("--once", action="store_true", help="show the current state of the run once, and end")
    result.add_argument("--svg", type=path, metavar="FILE", help="write the current view as a picture, and end")
    result.add_argument("--serve", action="store_true", help="show the figures of the runs in a browser as they go on")
    where = "address to serve at; others than this machine's own let other machines see the runs (default: 127.0.0.1)"
    result.add_argument("--host", type=_host, metavar="ADDRESS", default="127.0.0.1", help=where)
    result.add_argument("--port", type=_port, default=8421, help="port to serve at; 0 for any free one (default: 8421)")
    add_plugin_flag(result)
    return result


def _host(text: str) -> str:
    """Return the text of a flag that takes an address. Raise an ArgumentTypeError if it is empty, which means all."""
    if not text.strip():
        raise ArgumentTypeError("no address is given; allowed: such as 127.0.0.1, or 0.0.0.0 for all of this machine")
    return text


def _port(text: str) -> int:
    """Convert the text of a flag that takes a port. Raise an ArgumentTypeError unless it is between 0 and 65535."""
    if not (text.isdecimal() and int(text) <= 65535):
        raise ArgumentTypeError(f"{shortened(text)!r} is no port; allowed: 0 to 65535")
    return int(text)


def _check(arguments: Namespace) -> None:
    """Raise a ValueError if a flag has no effect beside the others."""
    serving = ("host", "port")
    for name in {"once", "svg"} & set(arguments.given) if arguments.serve else set(serving) & set(arguments.given):
        beside = ("with", "without") if arguments.serve else ("without", "with")
        raise ValueError(f"{name}: has no effect {beside[0]} --serve; allowed {beside[1]} --serve")
    if len(arguments.runs) > 1 and not arguments.serve:
        raise ValueError(f"runs: {len(arguments.runs)} are given; allowed: one, or several with --serve")


def main(argv: Sequence[str] | None = None) -> int:
    """Show the run until it ends, or serve the runs until the program is interrupted; return the exit code."""
    console = Output("auto")
    try:
        arguments = parser().parse(argv)
        _check(arguments)
        if arguments.serve:
            from simsfl.cli.serve import serve  # noqa: PLC0415  (figures take seconds to import)

            serve(arguments.runs, arguments.host, arguments.port, console)
        else:
            _show(RunDirectory(arguments.runs[0]), arguments.svg, console, once=arguments.once)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        return fail(error)
    return 0


def _show(directory: RunDirectory, svg: Path | None, console: Output, *, once: bool) -> None:
    """Show the live view of a run on the terminal until it ends.

    Args:
        directory: the run directory.
        svg: file to write the current view into instead.
        console: what to show it on.
        once: whether to show its current state alone.

    Raises:
        ValueError: it holds no run, a file in it is damaged, or the file cannot be written.
    """
    config = directory.read_config().config.to_dict()
    out = Outputs.of(svg, "svg") if svg else None
    history = History()
    watched = _Watched(directory, history)
    status = watched.read()
    if not status and not once and not out:
        console.say("no program is training this run, or it has just begun: there is no live.json yet")
    if svg and out:
        picture = Output(file=io.StringIO(), record=True, width=100, color_system="truecolor")
        picture.print(render(config, history, status))
        title = visible(f"{called('watch')} {directory.path.resolve().name}")
        with out.replacing(svg.name) as file:
            picture.save_svg(str(file), title=title)
        console.say(f"wrote {svg}")
        return
    if once or (status and status.activity in ENDINGS and not console.live):
        console.print(render(config, history, status))
    else:
        status = _follow(watched, (LiveView if console.live else PlainView)(config, history, console), console)
    if status:
        console.print()
        console.say(gone(status) or status.activity)
