"""The run directory: where its files are, and what may be overwritten.

A run writes ``config.json`` (the config with every rule applied, versions, commit, checksum of the data),
``metrics.jsonl`` (see `simsfl.runs.metrics`), ``live.json`` (rates and times, replaced about once a second),
``checkpoints/``, ``start.safetensors`` (the weights of the expert that the run starts from, if any), ``partition.npz``
(which images each client holds, if that was passed from Python), ``summary.json``, and if asked ``trace.json`` (a
profile). A run with real devices adds ``devices.log``, and each tracker a folder of its name (`simsfl.runs.tracking`).
``report.py`` and ``attack.py`` write their results into the same directory. Whatever is written whole is listed, so
that nothing else is ever replaced or deleted (`simsfl.system.outputs`).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from simsfl.config import RunConfig
from simsfl.data import Dataset
from simsfl.data.partition import Partition
from simsfl.engine.precision import name_of
from simsfl.engine.tuning import processor
from simsfl.runs import checkpoint
from simsfl.runs.metrics_log import is_written
from simsfl.runs.records import (
    DatasetRecord,
    PluginError,
    RunRecord,
    Summary,
    check_plugins,
    identity_in,
    lasting,
    read,
    sources,
    to_json,
)
from simsfl.runs.tracking import OWN_FILES
from simsfl.system.files import digest, replacing
from simsfl.system.messages import shortened
from simsfl.system.outputs import Outputs
from simsfl.system.programs import pasted

_PACKAGES = ("torchvision", "numpy", "rich", "safetensors")
"""Packages whose versions are recorded, besides those of Python and PyTorch."""


class RunDirectory:
    """The paths of the files in a run directory; constructing one does not touch the disk.

    Args:
        path: the run directory.

    Attributes:
        outputs: the directory as programs write into it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.outputs = Outputs(self.path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.live = self.path / "live.json"
        self.summary = self.path / "summary.json"
        self.checkpoints = self.path / "checkpoints"
        self.start = self.path / "start.safetensors"
        self.partition = self.path / "partition.npz"
        self.trace = self.path / "trace.json"
        self.devices = self.path / "devices.log"
        self.report = self.path / "report.md"
        self.page = self.path / "report.html"
        self.figures = self.path / "figures"
        self.attacks = self.path / "attacks"
        self.fleet_clients = self.path / "fleet" / "clients.csv"
        self.exports = self.path / "exports"

    @property
    def _whole(self) -> list[str]:
        """Return the names of the files of a run that are written whole, and are therefore listed."""
        return [path.name for path in (self.config, self.start, self.partition, self.summary, self.trace)]

    @property
    def _made_of_runs(self) -> list[str]:
        """Return the names of what programs write about runs, which is listed as well."""
        return [path.name for path in (self.report, self.page, self.figures, self.attacks, self.exports)]

    @property
    def _growing(self) -> list[Path]:
        """Return the files of a run that change while it goes on."""
        tracked = (path for pattern in OWN_FILES for path in sorted(self.path.glob(pattern)))
        return [self.metrics, self.live, self.devices, *tracked]

    def check_free(self, *, overwrite: bool) -> None:
        """Raise a ValueError unless a new run may be written here; nothing is left behind.

        Args:
            overwrite: whether the directory may hold another run, which must not be running, or a report.
        """
        try:
            self._check_free(overwrite=overwrite)
        except OSError as error:
            raise ValueError(
                f"out: {shortened(self.path)} cannot be written ({error.strerror}); allowed: a writable directory"
            ) from error

    def _check_free(self, *, overwrite: bool) -> None:
        """Do what `check_free` does; an OSError means that the directory cannot be written."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out: {self.path} is a file; allowed: a directory, or a path where one can be made")
        held = [name for name in self._whole if os.path.lexists(self.path / name)]
        growing = (*self._growing, self.checkpoints / checkpoint.MANIFEST)
        others = [path.name for path in growing if os.path.lexists(path)]
        foreign = [*others, *(name for name in held if not self.outputs.owns(name))]
        run = identity_in(self.config) if self.config.is_file() else None
        if foreign and run is None:
            raise ValueError(
                f"out: {self.path} holds {foreign[0]}, but no run of simsfl that could be replaced; allowed: another "
                "directory"
            )
        if (held or others) and not overwrite:
            raise ValueError(
                f"out: {self.path} holds another run; allowed: another directory, --overwrite to replace it, "
                f"or {pasted(['--resume', str(self.path)])} to go on with it"
            )
        if not overwrite and (made := self.outputs.owned(*self._made_of_runs)):
            raise ValueError(
                f"out: {self.path} holds {made[0]} of other runs; allowed: another directory, or --overwrite to replace"
                " what simsfl has written about them"
            )
        if self.outputs.listed:
            self.outputs.check(*held)
        if called_alike := checkpoint.others(self.checkpoints, run):
            raise ValueError(
                f"out: {self.checkpoints / called_alike[0]} is called as a checkpoint is, but is none of a run here; "
                "allowed: another directory, or to move that file away"
            )
        if self.metrics.exists() and is_written(self.metrics):
            raise ValueError(f"out: {self.path} is being written to by another process; allowed: another directory")
        existing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        with tempfile.TemporaryDirectory(dir=existing, prefix=".simsfl-"):
            pass

    @classmethod
    def claim(cls, path: Path) -> RunDirectory:
        """Create a new directory at `path`, with a number appended if it exists: ``runs/x``, then ``runs/x+2``, ..."""
        candidate, number = path, 1
        while True:
            try:
                candidate.mkdir(parents=True)
            except FileExistsError:
                number += 1
                candidate = path.with_name(f"{path.name}+{number}")
            else:
                return cls(candidate)

    def clear(self) -> None:
        """Delete the run that is here, and reports, figures, attacks and exports; what others have put here stays."""
        run = identity_in(self.config) if self.config.is_file() else None
        if run:
            self.outputs.adopt(self._whole)
            checkpoint.clear(self.checkpoints, run)
            for path in self._growing:
                path.unlink(missing_ok=True)
        self.outputs.clear(*self._whole, *self._made_of_runs)

    def reopen(self, *, profile: bool) -> None:
        """Prepare to go on with the run: the summary of a run that had ended is deleted, and will be made again.

        Args:
            profile: whether ``trace.json`` will be written, too.

        Raises:
            ValueError: one of the two is there, but is not simsfl's own.
        """
        self.outputs.adopt(self._whole)
        self.outputs.check(self.summary.name, *[self.trace.name] * profile)
        self.summary.unlink(missing_ok=True)

    @contextmanager
    def appearing(self) -> Iterator[RunDirectory]:
        """Yield the directory to write the first files of a run into; they all appear here at the end, or none of them.

        If the directory exists and is not empty, or is a mount point, it is written into directly.
        """
        place = Path(os.path.realpath(self.path))  # a link stays one
        if place.is_dir() and (any(place.iterdir()) or place.is_mount()):
            yield self
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as temporary:
            temporary.mkdir()
            if place.is_dir():
                shutil.copymode(place, temporary)
            yield RunDirectory(temporary)

    def record(
        self,
        config: RunConfig,
        by_rule: Sequence[str],
        reasons: Mapping[str, str],
        dataset: Dataset,
        choices: Mapping[str, str],
        callbacks: Sequence[str],
        partition: Partition | None,
    ) -> RunRecord:
        """Write ``config.json``, after ``start.safetensors`` and ``partition.npz`` if any; return its content.

        Args:
            config: the config with every rule applied.
            by_rule: names of the fields that rules have filled in.
            reasons: why a field has its value, by name.
            dataset: the images; their name, origin and checksums are recorded.
            choices: versions of operators in use, by operator and shape.
            callbacks: classes of callbacks, observers and wires that the config does not name.
            partition: which images each client holds, if that was passed.
        """
        if partition:
            with self.outputs.replacing(self.partition.name) as file:
                partition.save(file)
        plugins, files = sources(config)
        record = RunRecord(
            config=config,
            by_rule=list(by_rule),
            reasons=dict(reasons),
            dataset=DatasetRecord.of(dataset),
            versions={
                "python": platform.python_version(),
                "torch": torch.__version__,  # with the build, such as +cpu, which the package's version lacks
                **{name: version(name) for name in _PACKAGES},
            },
            threads=torch.get_num_threads(),
            choices=dict(choices),
            plugins=plugins,
            callbacks=list(callbacks),
            defaults=config.defaults,
            files=files,
            machine=processor() if config.device == "cpu" else name_of(config.device),
            git_commit=git_commit(),
            start=digest(self.start) if self.start.exists() else None,
            partition=partition.checksum if partition else None,
        )
        self.outputs.write_json(self.config.name, to_json(record))
        return self.read_config()

    def read_config(self) -> RunRecord:
        """Return the content of ``config.json``.

        Raises:
            ValueError: this is not a run directory, or its ``config.json`` is damaged or was edited.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; allowed: the directory of a run")
        if not self.config.is_file():
            raise ValueError(f"{self.path} is not the directory of a run: it has no config.json; allowed: one that has")
        check_plugins(self.config)
        try:
            return read(self.config, RunRecord)
        except PluginError as error:
            raise ValueError(f"plugin: {error}; allowed: as it was when the run began") from error
        except ValueError as error:
            allowed = f"as the run wrote it, or {pasted(['--config', str(self.config)])} for a new run"
            raise ValueError(f"{error}; allowed: {allowed}") from error

    def read_partition(self, saved: RunRecord) -> Partition | None:
        """Return the partition that was passed when the run began, None if none was.

        Raises:
            ValueError: it is missing, damaged, or another.
        """
        if saved.partition is None:
            return None
        try:
            partition = Partition.load(self.partition)
            if partition.checksum != saved.partition:
                raise ValueError("is damaged, or was edited")
        except ValueError as error:
            raise ValueError(f"resume: {self.partition} {error}; allowed: as the run wrote it") from error
        return partition

    def read_summary(self) -> Summary | None:
        """Return the content of ``summary.json``, None where the run has not ended; a ValueError if it is damaged."""
        return read(self.summary, Summary) if self.summary.exists() else None

    def check_metrics(self, summary: Summary) -> None:
        """Raise a ValueError unless ``metrics.jsonl`` is as it was when this summary was written."""
        if summary.metrics_sha256 not in (None, digest(self.metrics) if self.metrics.is_file() else ""):
            raise ValueError(f"{self.metrics} is damaged, or was edited since the run ended")

    def check_same(self, config: RunConfig, dataset: Dataset, partition: Partition | None) -> RunRecord:
        """Return what was recorded of the run in this directory, if its config is this one, apart from what may differ.

        Args:
            config: the config with every rule applied.
            dataset: the images.
            partition: which images each client holds, if that was passed.

        Raises:
            ValueError: it is another run.
        """
        saved = self.read_config()
        same = saved.partition == (partition.checksum if partition else None)
        if lasting(saved.config) != lasting(config) or not saved.dataset.is_of(dataset) or not same:
            raise ValueError(f"out: {self.path} holds another run; allowed: another directory")
        return saved


def git_commit() -> str | None:
    """Return the commit of the source tree, with "-dirty" appended if code has changed; None outside a checkout.

    Pages and figures may have changed, such as those that earlier runs of a results page have made.
    """
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ":(top)*.py")
    return commit and commit + "-dirty" * bool(changed)


def _git(*command: str) -> str | None:
    """Return what git prints about the source tree; None if there is no git, or no checkout."""
    try:
        where = ["git", "-C", str(Path(__file__).parent)]
        done = subprocess.run([*where, *command], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
