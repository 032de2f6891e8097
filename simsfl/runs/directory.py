"""The run directory: where its files are, and what may be overwritten.

A run writes ``config.json`` (the config with every rule applied, versions, commit, checksum of the data),
``metrics.jsonl`` (see `simsfl.runs.metrics`), ``live.json`` (rates and times, replaced about once a second),
``checkpoints/``, ``start.safetensors`` (the weights of the expert that the run starts from, if any), ``summary.json``,
and if asked ``trace.json`` (a profile). A run with real devices adds ``devices.log``. ``report.py`` and ``attack.py``
write their results into the same directory.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from simsfl.config import RunConfig
from simsfl.data import Dataset
from simsfl.kernels import are_choices
from simsfl.runs.metrics import is_written
from simsfl.system.files import replacing, write_json
from simsfl.system.messages import shortened

_PACKAGES = ("torchvision", "numpy", "rich", "safetensors")
"""Packages whose versions are recorded, besides those of Python and PyTorch."""


class RunDirectory:
    """The paths of the files in a run directory; constructing one does not touch the disk.

    Args:
        path: the run directory.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.live = self.path / "live.json"
        self.summary = self.path / "summary.json"
        self.checkpoints = self.path / "checkpoints"
        self.start = self.path / "start.safetensors"
        self.trace = self.path / "trace.json"
        self.devices = self.path / "devices.log"
        self.report = self.path / "report.md"
        self.figures = self.path / "figures"
        self.attacks = self.path / "attacks"

    def check_free(self, *, overwrite: bool) -> None:
        """Raise a ValueError unless a new run may be written here; nothing is left behind.

        Args:
            overwrite: whether the directory may hold another run, which must not be running.
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
        if not overwrite and any(path.exists() for path in self._files()):
            raise ValueError(
                f"out: {self.path} holds another run; allowed: another directory, --overwrite to replace it, "
                f"or --resume {self.path} to go on with it"
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
        """Delete all files of an older run, including its report, figures and attacks."""
        for path in self._files():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def appearing(self) -> Iterator[RunDirectory]:
        """Yield the directory to write the first files of a run into; they all appear here at the end, or none of them.

        If the directory exists and is not empty, it is written into directly.
        """
        if self.path.is_dir() and any(self.path.iterdir()):
            yield self
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            temporary.mkdir()
            yield RunDirectory(temporary)

    def record(
        self,
        config: RunConfig,
        by_rule: Sequence[str],
        reasons: Mapping[str, str],
        dataset: Dataset,
        choices: Mapping[str, str],
    ) -> None:
        """Write ``config.json``.

        Args:
            config: the config with every rule applied.
            by_rule: names of the fields that rules have filled in.
            reasons: why a field has its value, by name.
            dataset: the images; their name, origin and checksum are recorded.
            choices: versions of operators in use, by operator and shape.
        """
        write_json(
            self.config,
            {
                "config": config.to_dict(),
                "by_rule": list(by_rule),
                "reasons": dict(reasons),
                "dataset": {"name": dataset.name, "origin": dataset.origin, "sha256": dataset.checksum},
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,  # with the build, such as +cpu, which the package's version lacks
                    **{name: version(name) for name in _PACKAGES},
                },
                "threads": torch.get_num_threads(),
                "choices": dict(choices),
                "git_commit": git_commit(),
            },
        )

    def read_config(self) -> dict[str, Any]:
        """Return the content of ``config.json`` (see `record`).

        Raises:
            ValueError: this is not a run directory, or its ``config.json`` is damaged.
        """
        try:
            content = json.loads(self.config.read_text(encoding="utf-8"))
            RunConfig.from_dict(content["config"])
            if not isinstance(content["dataset"]["sha256"], str) or not isinstance(content["threads"], int):
                raise TypeError("checksum or threads are not as they should be")
            if not are_choices(content["choices"]):
                raise TypeError("choices are not names")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path} is not the directory of a run: no usable config.json ({error})") from error
        return content

    def check_same(self, config: RunConfig, dataset: Dataset) -> None:
        """Raise a ValueError unless the run in this directory has this config and these images.

        Device and precision may differ: a run may be resumed on a device that does not support its precision.
        """
        saved = self.read_config()
        same = saved["config"] | {"device": config.device, "precision": config.precision} == config.to_dict()
        if not same or saved["dataset"]["sha256"] != dataset.checksum:
            raise ValueError(f"out: {self.path} holds another run; allowed: another directory")

    def _files(self) -> list[Path]:
        """Return the paths of all that a run, a report or an attack writes here."""
        return [
            self.config,
            self.metrics,
            self.live,
            self.summary,
            self.checkpoints,
            self.start,
            self.trace,
            self.devices,
            self.report,
            self.figures,
            self.attacks,
        ]


def git_commit() -> str | None:
    """Return the commit of the source tree, with "-dirty" appended if it has changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
