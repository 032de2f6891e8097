"""A run as a program carries it out: recorded on disk, shown on the console, and stopped without loss."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import torch

from simsfl.algorithm.observer import Observer
from simsfl.cli.ranks import Stopwatch, is_checkpoint_due, stops_after
from simsfl.cost.model import client_flops
from simsfl.evaluation.encoding import Item
from simsfl.fleet.readiness import HOUR
from simsfl.fleet.spent import Clients
from simsfl.rounds.filling import filled
from simsfl.rounds.recorder import Recorder
from simsfl.runs.directory import RunDirectory
from simsfl.runs.fleet_totals import watt_hours
from simsfl.runs.history import History
from simsfl.runs.metrics import AbsenceCount, ChangeRecord, Record, Status, to_dict
from simsfl.runs.metrics_log import MetricsLog
from simsfl.runs.records import ProbeSummary, Summary, sources, to_json
from simsfl.runs.tracking import Tracked
from simsfl.runs.tracking.feed import Feed
from simsfl.simulation import Simulation
from simsfl.system.console import Output
from simsfl.system.files import digest, write_json
from simsfl.system.outputs import Outputs
from simsfl.system.progress import watched
from simsfl.system.signals import Stop
from simsfl.ui.dashboard import LiveView, PlainView

_LIVE_SECONDS = 1.0
"""Seconds after which ``live.json`` is replaced, unless the view is due earlier."""
UNTRACED = 3
"""Number of steps to warm up before those that are profiled."""


def ended(directory: RunDirectory, simulation: Simulation) -> Summary | None:
    """Return the summary of a run in which nothing is left to do; None where its end is to be made, or made again.

    Args:
        directory: the run directory.
        simulation: the simulation that was loaded from it, which is told what is damaged.

    Raises:
        ValueError: ``summary.json`` is damaged.
    """
    over = simulation.progress.round_index == simulation.config.rounds
    summary = directory.read_summary() if over else None
    try:
        if summary:
            directory.check_metrics(summary)
    except ValueError as error:
        simulation.damaged.append(f"{error}; its end is made again")
        return None
    return summary


class Session:
    """One simulation that trains and writes into one run directory.

    Args:
        simulation: a new simulation, or one that was loaded from a checkpoint in the directory.
        directory: the run directory; records of ``metrics.jsonl`` later than the simulation's state are removed.
        console: where the run is shown; the run is stopped when nobody reads it any more, as in ``| head``.
        stop: entered already; says when the user wants the run to end.
        recorder: recorder of a client trace, if one is asked for.

    Attributes:
        history: the records so far, including those of earlier sessions.
        result: the content of ``summary.json`` once the run has finished, None before.

    Raises:
        ValueError: another process writes into the directory, or its metrics do not fit its checkpoint.
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
        self.log = MetricsLog(directory.metrics, simulation.progress.metrics)
        self.history = History()
        for record in self.log.kept:
            self.history.feed(record)
        if simulation.progress.absent is None and "absence" not in self.history.latest:  # a run of an earlier version
            simulation.progress.absent = AbsenceCount()
        self.view: LiveView | PlainView | None = None
        self.result: Summary | None = None
        self.shown = 0.0
        self._stopwatch = Stopwatch(simulation)

    def go(self, *, live: bool, profile: int | None = None) -> bool:
        """Train to the end, or until the user stops the run, and write everything into the directory.

        Args:
            live: whether to show the live view instead of plain lines.
            profile: number of steps to profile, into a Chrome trace; None for no profile.

        Returns:
            Whether the run is finished.

        Raises:
            NonFiniteLossError: training diverged.
            OSError: a file could not be written.
        """
        config = self.simulation.config
        with Feed(config.trackers, Tracked.of(self.directory.path, config), self.log.kept) as self.feed:
            finished = self._go(live=live, profile=profile)
            if finished:
                self._tell_clients()
                self.result = self.summary()
                content = to_json(self.result)
                self.directory.outputs.write_json(self.directory.summary.name, content)
                self.feed.finish(content, self._draw)
        return finished

    def _tell_clients(self) -> None:
        """Write what each client of the fleet has spent, if there is one, into ``fleet/clients.csv``."""
        if timeline := self.simulation.parts.timeline:
            clients = Clients(self.simulation.config.clients)
            for number in watched(range(self.simulation.progress.round_index), "telling the fleet"):
                clients.add(timeline.told(number))
            Outputs(self.directory.path / "fleet").write_text("clients.csv", clients.table(timeline.costs))

    def _go(self, *, live: bool, profile: int | None) -> bool:
        """Do what `go` does, without the summary."""
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
            with suppress(OSError):  # a full disk has been reported already
                self._write_live(ending)
        return finished

    def _draw(self, place: Path) -> dict[str, Path]:
        """Draw the images of the finished run for its trackers; see `Feed.finish`."""
        from simsfl.cli.track.images import draw_into  # noqa: PLC0415  (imports matplotlib)

        return draw_into(place, self.directory, self.simulation)

    def save(self) -> None:
        """Write a checkpoint that belongs to the metrics written so far."""
        self.simulation.save(self.directory.path, self.log.sync())

    def summary(self) -> Summary:
        """Return the content of ``summary.json``."""
        progress, config, history = self.simulation.progress, self.simulation.config, self.history
        status, spent = self._status("finished"), watt_hours(self.history.fleet)
        return Summary(
            preset=config.preset,
            method=config.method,
            dataset=config.dataset,
            clients=config.clients,
            cohort=config.cohort,
            rounds=progress.round_index,
            steps=progress.round_index * progress.steps,
            loss=history.value("round", "loss"),
            contrast_top1=history.value("round", "contrast_top1"),
            knn_top1=history.value("evaluation", "knn_top1"),
            class_top1=self._named(self.simulation.dataset.classes, "class_top1"),
            clients_top1=self._named(("mean", "worst_tenth", "std"), "clients_top1"),
            output_std=history.value("evaluation", "output_std"),
            linear_top1=history.probes.get("linear", {}).get("top1"),
            probes={
                kind: ProbeSummary(record["top1"], record["best_top1"], record["features"])
                for kind, record in history.probes.items()
            },
            knn_top1_untrained=history.untrained("knn_top1"),
            knn_top1_pixels=history.untrained("pixel_knn_top1"),
            seconds=progress.seconds,
            client_steps_per_second=status.client_steps_per_second,
            images_per_second=status.images_per_second,
            peak_memory_bytes=status.peak_memory_bytes,
            bytes_up_per_client=history.value("round", "bytes_up_per_client"),
            bytes_down_per_client=history.value("round", "bytes_down_per_client"),
            bytes_saved_per_client=history.value("round", "bytes_saved_per_client"),
            client_flops_per_step=self._client_flops(),
            absences=progress.absent,
            fleet_hours=history.fleet[-1]["clock"] / HOUR if history.fleet else None,
            fleet_wh_per_client=None if spent is None else spent / config.clients,
            fleet_server_wh=watt_hours(history.fleet, "server_wh"),
            metrics_sha256=digest(self.directory.metrics),
        )

    def _named(self, names: Sequence[str], field: str) -> dict[str, float | None] | None:
        """Return the numbers that the latest evaluation has in a field, by name; None where it has none."""
        values = self.history.value("evaluation", field)
        return None if values is None else dict(zip(names, values, strict=True))

    def _client_flops(self) -> int:
        """Return the floating-point operations of a client's step, averaged over the cohort."""
        parts, config = self.simulation.parts, self.simulation.config
        graded = config.views_graded if parts.hyper.clients_learn else 0
        image = client_flops(parts.model, config.image_size, views=config.views_sent, graded=graded)
        return round(config.passes_per_image * image * sum(group.images for group in parts.groups) / config.cohort)

    def _status(self, activity: str) -> Status:
        """Return the status of the run, which is doing `activity`."""
        simulation, config, progress = self.simulation, self.simulation.config, self.simulation.progress
        steps = progress.round_index * progress.steps + progress.step_index
        rate = steps * config.cohort / progress.seconds if progress.seconds else None
        images = sum(group.images for group in simulation.parts.groups) / config.cohort
        return Status(
            activity=activity,
            updated=time.time(),
            round=progress.round_index,
            step=progress.step_index,
            rounds=config.rounds,
            steps=progress.steps,
            seconds=progress.seconds,
            step_seconds=simulation.pace.step_seconds,
            client_steps_per_second=rate,
            images_per_second=rate and rate * images,
            phase_seconds=simulation.clock.seconds(),
            peak_memory_bytes=simulation.peak_memory_bytes(),
            participation=torch.bincount(simulation.state.clients.participation).tolist(),
            queue_filled=filled(simulation.parts, progress),
            devices=simulation.wire.devices(),
            ranks=self._stopwatch.ranks,
        )

    @contextmanager
    def _profiling(self, steps: int) -> Iterator[None]:
        """Profile `steps` steps of training inside, after `UNTRACED` to warm up, and write a Chrome trace of them."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports a missing GPU as an error
        with torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=1, warmup=UNTRACED - 1, active=steps, repeat=1),
            on_trace_ready=self._write_profile,
        ) as profile:
            observer = _Profiled(profile)
            self.simulation.observers.append(observer)
            yield
        self.simulation.observers.remove(observer)

    def _write_profile(self, profile: torch.profiler.profile) -> None:
        """Write a profile as a Chrome trace; PyTorch itself writes into no directory whose name is not UTF-8."""
        with (
            tempfile.TemporaryDirectory() as scratch,
            self.directory.outputs.replacing(self.directory.trace.name) as file,
        ):
            profile.export_chrome_trace(f"{scratch}/trace.json")
            shutil.copyfile(f"{scratch}/trace.json", file)

    def _train(self) -> bool:
        """Train to the end or until the user stops the run, and show it; return whether it is finished.

        The first signal ends the run after the current step, or at once during an evaluation, and saves a checkpoint
        there. The second signal ends it without one, so that it resumes from its last checkpoint.
        """
        self.stop.patient = True
        self._note_change()
        self._show("starting")
        try:
            for record in self.simulation.train():
                self._take(record)
                self.refresh("training")
                if self.console.lost:
                    self.stop.received = signal.SIGPIPE
                if stops_after(self.simulation, record, self.stop):
                    self.save()
                    return False
        except Stopped:
            self.stop.received = self.stop.received or signal.SIGPIPE  # without a signal, the console's reader has gone
            self.save()
            return False
        except KeyboardInterrupt:
            return False
        return True

    def _note_change(self) -> None:
        """Record the plugins and the files of options if they are not those that the run went on with so far."""
        plugins, files = sources(self.simulation.config)
        before = self.history.latest.get("change") or asdict(self.directory.read_config())
        other_code = {plugin.sha256 for plugin in plugins} != {plugin["sha256"] for plugin in before["plugins"]}
        if other_code or any(files.get(name, known) != known for name, known in before["files"].items()):
            progress = self.simulation.progress
            self._take(ChangeRecord(progress.round_index, progress.step_index, plugins, files))

    def _take(self, record: Record) -> None:
        """Write a record, hand it on, and write a checkpoint if one is due."""
        self.log.write(record)
        content = to_dict(record)
        self.history.feed(content)
        self.feed.take(content)
        self._stopwatch.see(record)
        if is_checkpoint_due(self.simulation, record):
            self.save()

    def _watch(self, title: str, items: Sequence[Item]) -> Iterator[Item]:
        """Yield the items of a long loop of an evaluation, and show how far it has come.

        Raises:
            Stopped: the user wants to stop.
        """
        for done, item in enumerate(items):
            if self.stop.received and self.simulation.parts.world.alone:  # other ranks are at other items
                raise Stopped
            self.refresh(f"{title} {done:,}/{len(items):,}")
            yield item

    def refresh(self, activity: str) -> None:
        """Show the run, doing `activity`, if the view is due or `_LIVE_SECONDS` have passed."""
        if self.view.due() or time.monotonic() - self.shown >= _LIVE_SECONDS:
            self._show(activity)

    def _show(self, activity: str) -> None:
        """Show the run, doing `activity`, on the console and in ``live.json``."""
        if self.stop.received and activity == "training":
            activity = "stopping"
        self._write_live(activity)
        self.view.show(self.status)

    def _write_live(self, activity: str) -> None:
        """Replace ``live.json`` with the current status."""
        self.shown = time.monotonic()
        self.status = self._status(activity)
        write_json(self.directory.live, asdict(self.status), durable=False)


class _Profiled(Observer):
    """An observer that marks the end of each step for PyTorch's profiler."""

    def __init__(self, profile: torch.profiler.profile):
        self._profile = profile

    def step_is_over(self) -> None:
        """Mark the end of a step."""
        self._profile.step()


class Stopped(Exception):
    """Raised when the user wants to stop at a point where the state may be saved.

    Such points are in an evaluation, and where a round waits for a device.
    """
