"""Give the records and images of runs to trackers, as run.py --track does while it trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from simsfl.cli.flags import add_field_flags, add_plugin_flag
from simsfl.cli.track.images import draw_into
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics_log import is_written, read_records
from simsfl.runs.records import RunRecord, to_json
from simsfl.runs.tracking import Tracked
from simsfl.runs.tracking.feed import Feed, check_installed
from simsfl.system.console import Output
from simsfl.ui.arguments import Parser, fail, path

_USUAL = "tensorboard"
"""The tracker of runs whose config names none."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    default = f"Without --track, each run goes to the trackers of its config, or else to {_USUAL}."
    result = Parser(description=__doc__, epilog=default)
    result.add_argument("runs", type=path, nargs="+", metavar="RUN_DIR", help="run directories")
    add_field_flags(result, ("track",))
    add_plugin_flag(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Give each run to its trackers; return the exit code, which is 1 if one of these has failed."""
    try:
        arguments = parser().parse(argv)
        found = [_checked(RunDirectory(run), getattr(arguments, "track", None)) for run in arguments.runs]
        complete = [_give(*run) for run in found]
    except (ValueError, OSError) as error:
        return fail(error)
    return 0 if all(complete) else 1


def _checked(directory: RunDirectory, track: str | None) -> tuple[RunDirectory, RunRecord, list[str]]:
    """Return the directory of a run, what is recorded of it, and the names of its trackers.

    Args:
        directory: the run directory.
        track: names of trackers, separated by commas; None for those of the run.

    Raises:
        ValueError: there is no such run, it is damaged, a process is writing it, or there is no such tracker.
    """
    content = directory.read_config()
    names = replace(content.config, track=track or content.config.track or _USUAL).trackers
    check_installed(names)
    if not directory.metrics.is_file():
        raise ValueError(f"{directory.path} has no records yet; allowed: a run that has begun")
    if is_written(directory.metrics):
        raise ValueError(f"{directory.path} is being written to by another process; allowed once it ends")
    if summary := directory.read_summary():
        directory.check_metrics(summary)
    deque(read_records(directory.metrics), maxlen=0)  # all of them can be read, before a tracker begins to write
    return directory, content, names


def _give(directory: RunDirectory, content: RunRecord, names: list[str]) -> bool:
    """Give a run to trackers, and say where they have it; return whether none has failed."""
    console, summary = Output(), directory.read_summary()
    console.say(f"reading {directory.path}")
    records = (record for record, _ in read_records(directory.metrics))
    with Feed(names, Tracked.of(directory.path, content.config), records) as feed:
        if summary:
            feed.finish(to_json(summary), partial(draw_into, directory=directory))
    for name in feed.names:
        console.say(f"  {directory.path / name}")
    return feed.names == names
