"""The directory of one run: what is where, and what may be overwritten.

``config.json`` (resolved config, versions, commit, data checksum), ``metrics.jsonl`` (see `metrics`),
``live.json`` (rates and times, replaced about once a second), ``checkpoints/``, ``start.safetensors`` (the expert's
weights, where a run starts from one) and ``summary.json``; beside them what
``report.py`` and ``attack.py`` write of it.
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

PACKAGES = ("torchvision", "numpy", "rich", "safetensors")


class RunDirectory:
    """Paths of a run's files. Constructing one touches nothing."""

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
        """Raise a ValueError unless a new run may be written here; leaves nothing behind."""
        try:
            self._check_free(overwrite=overwrite)
        except OSError as error:
            raise ValueError(
                f"out: {shortened(self.path)} cannot be written ({error.strerror}); allowed: a writable directory"
            ) from error

    def _check_free(self, *, overwrite: bool) -> None:
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
        """Make a new directory at `path`, or with a number behind it where another run was quicker."""
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
        """Remove the files of an older run and its report."""
        for path in self._files():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def appearing(self) -> Iterator[RunDirectory]:
        """Where the first files of a run go; the directory appears with all of them, or not at all.

        A directory that holds something else is written into as it is.
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
        """Write down what the run is, and the versions of operators it uses.

        Args:
            by_rule: names of the fields that rules filled in.
            reasons: why a field is what it is, by name.
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
                    "torch": torch.__version__,  # with the build, which the package's version lacks
                    **{name: version(name) for name in PACKAGES},
                },
                "threads": torch.get_num_threads(),
                "choices": dict(choices),
                "git_commit": git_commit(),
            },
        )

    def read_config(self) -> dict[str, Any]:
        """The content of ``config.json``.

        Raises:
            ValueError: this is no run's directory.
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
        """Raise a ValueError unless the run here is of this config, on whatever device, and these images.

        The precision may be another where the device has not that of the run.
        """
        saved = self.read_config()
        same = saved["config"] | {"device": config.device, "precision": config.precision} == config.to_dict()
        if not same or saved["dataset"]["sha256"] != dataset.checksum:
            raise ValueError(f"out: {self.path} holds another run; allowed: another directory")

    def _files(self) -> list[Path]:
        """Everything a run or a report writes here."""
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
    """The commit of the source tree, "-dirty" appended where it has changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
