"""`run` and `resume` do from Python what ``simsfl run`` does, and write the same run directory."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from simsfl.cli.launch import begun
from simsfl.cli.ranks import check_alone
from simsfl.cli.session import Session, ended
from simsfl.config import RunConfig
from simsfl.config.presets import PRESETS
from simsfl.data import Dataset
from simsfl.data.partition import Partition
from simsfl.rounds.callback import Callback
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics_log import check_goes_on
from simsfl.runs.records import Summary
from simsfl.runs.tracking.feed import check_installed
from simsfl.simulation import Simulation
from simsfl.system.console import Output
from simsfl.system.signals import Stop

__all__ = ["resume", "run"]

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    out: str | Path | None = None,
    *,
    dataset: Dataset | None = None,
    partition: Partition | None = None,
    callbacks: Iterable[Callback] = (),
    overwrite: bool = False,
) -> Summary:
    """Train a run to its end in a run directory; return its results, the content of ``summary.json``.

    Args:
        config: what to run, such as one of `simsfl.config.presets`.
        out: the run directory; None for a new one in ``runs``.
        dataset: the images, instead of loading ``config.dataset``; to resume the run, they have to be given again.
        partition: which images each client holds; see `Simulation`.
        callbacks: objects that follow the records, besides those that the config names.
        overwrite: whether to replace a run that is in the directory.

    Raises:
        ValueError: the config asks for something impossible, or changes a field of its preset without any effect; or
            the directory is not free; or this process is one of several ranks, which ``simsfl run`` trains on.
        KeyboardInterrupt: the user stopped the run, after a checkpoint was written.
    """
    check_alone("simsfl.run")
    start = PRESETS.get(config.preset, RunConfig)()
    config.check_effect(config.changed_from(start))
    check_installed(config.trackers)
    out = None if out is None else Path(out)
    if out is not None:
        RunDirectory(out).check_free(overwrite=overwrite)
    with Stop() as stop:
        simulation = Simulation(config, dataset, partition=partition, callbacks=callbacks)
        return _finished(simulation, begun(simulation, out, overwrite=overwrite), stop)


def resume(path: str | Path, *, dataset: Dataset | None = None, callbacks: Iterable[Callback] = ()) -> Summary:
    """Train the run in a run directory on to its end, unless it has ended already; return its results, as `run` does.

    Args:
        path: the run directory.
        dataset: the images, if the run began with images that were given to it.
        callbacks: objects that follow the records, besides those that the config names.

    Raises:
        ValueError: there is no run, what it needs is missing or damaged, or another process trains it; or this is one
            of several ranks, see `run`.
        KeyboardInterrupt: the user stopped the run, after a checkpoint was written.
    """
    check_alone("simsfl.resume")
    with Stop() as stop:
        directory = RunDirectory(path)
        check_goes_on(directory.metrics)
        simulation = Simulation.load(path, dataset, going_on=True, callbacks=callbacks)
        if summary := ended(directory, simulation):
            return summary
        for problem in simulation.damaged:
            log.warning("%s", problem)
        directory.reopen(profile=False)
        return _finished(simulation, directory, stop)


def _finished(simulation: Simulation, directory: RunDirectory, stop: Stop) -> Summary:
    """Train to the end; return the summary."""
    session = Session(simulation, directory, Output("off"), stop)
    if not session.go(live=False):
        raise KeyboardInterrupt
    summary = directory.read_summary()
    assert summary is not None  # the session has written it
    return summary
