"""A run as a program carries it out: written down as it goes, shown, stopped without loss."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

from simsfl.dashboard import LiveView, PlainView
from simsfl.evaluate import Item
from simsfl.files import write_json
from simsfl.metrics import History, MetricsLog, Record, RoundRecord, StepRecord, read_records, to_dict
from simsfl.run_directory import RunDirectory
from simsfl.simulation import Simulation

LIVE_SECONDS = 1.0
"""How often ``live.json`` is replaced."""
ENDINGS = ("finished", "stopped", "failed")
"""What ``live.json`` gives as activity of a run that is over."""
STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a run where it can be saved."""


class Output(Console):
    """A console whose reader may go away, as in ``| head``; rich would exit at once, and lose the run."""

    deserted = False
    """Whether it has gone."""

    def on_broken_pipe(self) -> None:
        """Print nowhere from now on."""
        self.deserted = self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Session:
    """One simulation writing to one directory.

    Args:
        simulation: new, or loaded from the directory's checkpoints.
        directory: of the run; its ``metrics.jsonl`` is cut back to what belongs to the simulation's state.
        console: where the run is shown; it ends when nobody reads any more.

    Attributes:
        history: the records so far, of earlier sessions too.
        stopped_by: the signal that ended the session, None before.
    """

    def __init__(self, simulation: Simulation, directory: RunDirectory, console: Output):
        self.simulation, self.directory, self.console = simulation, directory, console
        self.log = MetricsLog(directory.metrics, simulation.metrics_bytes)
        self.history = History()
        for record, _ in read_records(directory.metrics):
            self.history.feed(record)
        self.stopped_by: signal.Signals | None = None
        self.saved_all = simulation.round_index == simulation.config.rounds
        self.view: LiveView | PlainView | None = None
        self.live_written = 0.0
        self.status: dict[str, Any] = {}

    def go(self, *, live: bool) -> bool:
        """Train to the end (True) or to a signal (False), and write everything down.

        Raises:
            NonFiniteLossError: training diverged.
        """
        self.simulation.watch = self._watch
        kind = LiveView if live else PlainView
        ending = "failed"
        try:
            with self.log, kind(self.simulation.config.to_dict(), self.history, self.console) as self.view:
                finished = self._train()
                ending = "finished" if finished else "stopped"
                self._show(ending)
        except KeyboardInterrupt:
            finished, ending = False, "stopped"
        finally:
            with suppress(OSError):  # of a full disk, which is reported already
                self._write_live(ending)
        if finished:
            write_json(self.directory.summary, self.summary())
        return finished

    def save(self) -> None:
        """Write a checkpoint that belongs to the metrics written so far."""
        self.simulation.save(self.directory.path, self.log.sync())

    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``."""
        simulation, config, history = self.simulation, self.simulation.config, self.history
        status = simulation.status()
        return {
            "preset": config.preset,
            "dataset": config.dataset,
            "clients": config.clients,
            "cohort": config.cohort,
            "rounds": simulation.round_index,
            "steps": simulation.round_index * simulation.steps,
            "loss": history.value("round", "loss"),
            "contrast_top1": history.value("round", "contrast_top1"),
            "knn_top1": history.value("evaluation", "knn_top1"),
            "linear_top1": history.value("probe", "linear_top1"),
            "linear_best_top1": history.value("probe", "linear_best_top1"),
            "knn_top1_untrained": history.untrained("knn_top1"),
            "knn_top1_pixels": history.untrained("pixel_knn_top1"),
            "seconds": simulation.seconds,
            "client_steps_per_second": status["client_steps_per_second"],
            "images_per_second": status["images_per_second"],
            "peak_memory_bytes": status["peak_memory_bytes"],
            "bytes_up_per_client": history.value("round", "bytes_up_per_client"),
            "bytes_down_per_client": history.value("round", "bytes_down_per_client"),
            "client_flops_per_step": simulation.cost.step_flops,
        }

    def _train(self) -> bool:
        """Train, showing it, until the end (True) or a signal (False)."""
        with self._stopping():
            self._show("training")
            for record in self.simulation.train():
                self._take(record)
                self._refresh("training")
                if self.console.deserted:
                    self.stopped_by = signal.SIGPIPE
                if self.stopped_by and self._may_save(record):
                    self.save()
                    return False
        return True

    def _watch(self, title: str, items: Sequence[Item]) -> Iterator[Item]:
        """Show how far a long loop of the simulation has come."""
        for done, item in enumerate(items):
            self._refresh(f"{title} {done}/{len(items)}")
            yield item

    def _refresh(self, activity: str) -> None:
        """Show the run to whom it is time to show it."""
        if self.view.due() or time.monotonic() - self.live_written >= LIVE_SECONDS:
            self._show(activity)

    def _show(self, activity: str) -> None:
        """Show the run, here and in ``live.json``."""
        self._write_live(activity)
        self.view.show(self.status)

    def _take(self, record: Record) -> None:
        """Write a record down, and a checkpoint where one is due."""
        self.log.write(record)
        self.history.feed(to_dict(record))
        config = self.simulation.config
        if isinstance(record, RoundRecord) and (
            record.round % config.checkpoint_every == 0 or record.round == config.rounds
        ):
            self.save()
            self.saved_all = record.round == config.rounds

    def _may_save(self, record: Record) -> bool:
        """Whether the simulation stands exactly behind `record`."""
        if isinstance(record, StepRecord):
            return record.step == self.simulation.step_index
        return isinstance(record, RoundRecord)

    def _write_live(self, activity: str) -> None:
        """Replace ``live.json``."""
        self.live_written = time.monotonic()
        self.status = {"activity": activity, "updated": time.time(), **self.simulation.status()}
        write_json(self.directory.live, self.status, durable=False)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Let the signals of `STOPPING` end the run after the step under way, where its state can be saved.

        At once if there is nothing more to save (only the linear probe is left), or at the second signal:
        then the run goes on from its last checkpoint.
        """

        def note(number: int, frame: object) -> None:
            again = self.stopped_by is not None
            self.stopped_by = signal.Signals(number)
            if again or self.saved_all:
                raise KeyboardInterrupt

        previous = {number: signal.signal(number, note) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
