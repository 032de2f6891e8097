"""A run as a program carries it out: written down as it goes, shown, stopped without loss."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import Any

import torch

from simsfl.algorithm.observer import Observer
from simsfl.cost.model import client_flops
from simsfl.evaluation import Item
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics import History, MetricsLog, Record, RoundRecord, Status, StepRecord, to_dict
from simsfl.runs.recorder import Recorder
from simsfl.simulation import Simulation
from simsfl.system.files import write_json
from simsfl.system.signals import Stop
from simsfl.ui.console import Output
from simsfl.ui.dashboard import LiveView, PlainView

LIVE_SECONDS = 1.0
"""How often ``live.json`` is replaced."""
UNTRACED = 3
"""Steps before those that are profiled."""


class Session:
    """One simulation writing to one directory.

    Args:
        simulation: new, or loaded from the directory's checkpoints.
        directory: of the run; its ``metrics.jsonl`` is cut back to what belongs to the simulation's state.
        console: where the run is shown; the run ends when nobody reads it any more.
        stop: entered already; says when the user wants the run to end.
        recorder: of a client's part in it.

    Attributes:
        history: the records so far, of earlier sessions too.
        result: the summary, once the run has finished.

    Raises:
        ValueError: another process writes to the run, or its metrics do not fit its checkpoint.
    """

    def __init__(
        self,
        simulation: Simulation,
        directory: RunDirectory,
        console: Output,
        stop: Stop,
        recorder: Recorder | None = None,
    ):
        self.simulation, self.directory, self.console, self.stop = simulation, directory, console, stop
        self.recorder = recorder
        self.log = MetricsLog(directory.metrics, simulation.progress.metrics_bytes)
        self.history = History()
        for record in self.log.kept:
            self.history.feed(record)
        self.view: LiveView | PlainView | None = None
        self.result: dict[str, Any] = {}
        self.shown = 0.0

    def go(self, *, live: bool, profile: int | None = None) -> bool:
        """Train to the end (True) or until the user stops it (False), and write everything down.

        Args:
            live: show the live view, rather than plain lines.
            profile: write a Chrome trace of so many steps.

        Raises:
            NonFiniteLossError: training diverged.
            OSError: something could not be written.
        """
        kind = LiveView if live else PlainView
        self.simulation.parts.evaluation.watch = self._watch
        ending = "failed"
        try:
            with (
                self.log,
                self.recorder or nullcontext(),
                self._profiling(profile) if profile else nullcontext(),
                kind(self.simulation.config.to_dict(), self.history, self.console) as self.view,
            ):
                finished = self._train()
                ending = "finished" if finished else "stopped"
                self._show(ending)
        finally:
            with suppress(OSError):  # of a full disk, which is reported already
                self._write_live(ending)
        if finished:
            self.result = self.summary()
            write_json(self.directory.summary, self.result)
        return finished

    def save(self) -> None:
        """Write a checkpoint that belongs to the metrics written so far."""
        self.simulation.save(self.directory.path, self.log.sync())

    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``."""
        progress, config, history = self.simulation.progress, self.simulation.config, self.history
        status = self._status("finished")
        return {
            "preset": config.preset,
            "method": config.method,
            "dataset": config.dataset,
            "clients": config.clients,
            "cohort": config.cohort,
            "rounds": progress.round_index,
            "steps": progress.round_index * progress.steps,
            "loss": history.value("round", "loss"),
            "contrast_top1": history.value("round", "contrast_top1"),
            "knn_top1": history.value("evaluation", "knn_top1"),
            "linear_top1": history.probes.get("linear", {}).get("top1"),
            "probes": {
                kind: {name: record[name] for name in ("top1", "best_top1", "features")}
                for kind, record in history.probes.items()
            },
            "knn_top1_untrained": history.untrained("knn_top1"),
            "knn_top1_pixels": history.untrained("pixel_knn_top1"),
            "seconds": progress.seconds,
            "client_steps_per_second": status.client_steps_per_second,
            "images_per_second": status.images_per_second,
            "peak_memory_bytes": status.peak_memory_bytes,
            "bytes_up_per_client": history.value("round", "bytes_up_per_client"),
            "bytes_down_per_client": history.value("round", "bytes_down_per_client"),
            "bytes_saved_per_client": history.value("round", "bytes_saved_per_client"),
            "client_flops_per_step": self._client_flops(),
        }

    def _client_flops(self) -> int:
        """Return the operations of the mean client's step."""
        parts, config = self.simulation.parts, self.simulation.config
        image = client_flops(parts.model, config.image_size, learns=parts.hyper.clients_learn)
        return round(config.passes_per_image * image * sum(group.images for group in parts.groups) / config.cohort)

    def _status(self, activity: str) -> Status:
        """Return how the run is going: everything timed, which is not in the records."""
        simulation, config, progress = self.simulation, self.simulation.config, self.simulation.progress
        steps = progress.round_index * progress.steps + progress.step_index
        rate = steps * config.cohort / progress.seconds if progress.seconds else None
        images = sum(group.images for group in simulation.parts.groups) / config.cohort
        recent = simulation.recent
        return Status(
            activity=activity,
            updated=time.time(),
            round=progress.round_index,
            step=progress.step_index,
            rounds=config.rounds,
            steps=progress.steps,
            seconds=progress.seconds,
            step_seconds=sum(recent) / len(recent) if recent else None,
            client_steps_per_second=rate,
            images_per_second=rate and rate * images,
            phase_seconds=simulation.clock.seconds(),
            peak_memory_bytes=simulation.peak_memory_bytes(),
            participation=torch.bincount(simulation.state.clients.participation).tolist(),
            devices=simulation.wire.devices(),
        )

    @contextmanager
    def _profiling(self, steps: int) -> Iterator[None]:
        """Write a trace of `steps` steps, after some to warm up."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports a missing GPU as an error
        with torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=1, warmup=UNTRACED - 1, active=steps, repeat=1),
            on_trace_ready=lambda profile: profile.export_chrome_trace(str(self.directory.trace)),
        ) as profile:
            observer = Profiled(profile)
            self.simulation.observers.append(observer)
            yield
        self.simulation.observers.remove(observer)

    def _train(self) -> bool:
        """Train, showing it, until the end (True) or until the user stops it (False).

        The first signal ends the run after the step under way, or at once while it evaluates: its state can be saved
        there. The second ends it without: it goes on from its last checkpoint.
        """
        self.stop.patient = True
        self._show("starting")
        try:
            for record in self.simulation.train():
                self._take(record)
                self.refresh("training")
                if self.console.deserted:
                    self.stop.received = signal.SIGPIPE
                if self.stop.received and self._may_save(record):
                    self.save()
                    return False
        except Stopped:
            self.stop.received = self.stop.received or signal.SIGPIPE  # no signal: the reader has gone
            self.save()
            return False
        except KeyboardInterrupt:
            return False
        return True

    def _take(self, record: Record) -> None:
        """Write a record down, and a checkpoint where one is due."""
        self.log.write(record)
        self.history.feed(to_dict(record))
        config = self.simulation.config
        if isinstance(record, RoundRecord) and (
            record.round % config.checkpoint_every == 0 or record.round == config.rounds
        ):
            self.save()

    def _may_save(self, record: Record) -> bool:
        """Whether the simulation stands exactly behind `record`."""
        if isinstance(record, StepRecord):
            return record.step == self.simulation.progress.step_index
        return isinstance(record, RoundRecord)

    def _watch(self, title: str, items: Sequence[Item]) -> Iterator[Item]:
        """Show how far a long loop of an evaluation has come, and leave it when the user wants to stop."""
        for done, item in enumerate(items):
            if self.stop.received:
                raise Stopped
            self.refresh(f"{title} {done:,}/{len(items):,}")
            yield item

    def refresh(self, activity: str) -> None:
        """Show the run if it is time to."""
        if self.view.due() or time.monotonic() - self.shown >= LIVE_SECONDS:
            self._show(activity)

    def _show(self, activity: str) -> None:
        """Show the run, here and in ``live.json``."""
        if self.stop.received and activity == "training":
            activity = "stopping"
        self._write_live(activity)
        self.view.show(self.status)

    def _write_live(self, activity: str) -> None:
        """Replace ``live.json``."""
        self.shown = time.monotonic()
        self.status = self._status(activity)
        write_json(self.directory.live, asdict(self.status), durable=False)


class Profiled(Observer):
    """Tells PyTorch's profiler where a step ends."""

    def __init__(self, profile: torch.profiler.profile):
        self._profile = profile

    def step_is_over(self) -> None:
        """See `Observer`."""
        self._profile.step()


class Stopped(Exception):
    """The user wants to stop, and the state may be saved: in an evaluation, or where a round waits for a device."""
