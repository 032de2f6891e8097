"""Checkpoints: safetensors files and a JSON manifest, written whole or not at all, and checked before use.

``manifest.json`` lists the files with their SHA-256, newest first. It is replaced once a new file is on disk, and older
files are deleted only after that, so at every moment it names whole files only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from simsfl.system.files import digest, write_json
from simsfl.system.tensor_file import Rows, write_tensors

_KEEP = 2
"""Number of checkpoints that are kept, so that a run can go back to an older one if the newest is damaged."""
_NUMBERS = ("round", "step", "seconds", "metrics_bytes", "peak_memory_bytes")
"""Names of the numbers that a checkpoint keeps beside its tensors, each 0 or more."""
_OBJECTS = ("communication", "traffic", "phase_seconds")
"""Names of the JSON objects that a checkpoint keeps beside its tensors."""


def save(directory: Path, name: str, tensors: Mapping[str, Tensor | Rows], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint and delete all but the newest `_KEEP`.

    Args:
        directory: directory of the checkpoints, created if it does not exist.
        name: name of the file without its ending. Names sort by time: listed checkpoints that do not come before
            this one were abandoned when the run went back to an older checkpoint, and are deleted.
        tensors: everything to restore, by name.
        meta: the values of `_NUMBERS` and `_OBJECTS`.

    Raises:
        OSError: the checkpoint cannot be written; the older ones are kept.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = f"{name}.safetensors"
    older = [entry for entry in _entries(directory) if entry["file"] < file]
    sha256 = write_tensors(directory / file, tensors)
    newest = {"file": file, "sha256": sha256, "meta": dict(meta)}
    kept = [newest, *older][:_KEEP]
    write_json(directory / "manifest.json", {"checkpoints": kept})
    for path in directory.glob("*.safetensors"):
        if path.name not in {entry["file"] for entry in kept}:
            path.unlink()


def newest(directory: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """Return the newest checkpoint that is undamaged.

    Returns:
        Its safetensors file, its `meta` (see `save`), and a line on each newer checkpoint that is missing or damaged.

    Raises:
        ValueError: no checkpoint in the directory is usable.
    """
    problems = []
    for entry in _entries(directory):
        path = directory / entry["file"]
        if not path.is_file():
            problems.append(f"checkpoint {path} is missing")
        elif digest(path) != entry["sha256"]:
            problems.append(f"checkpoint {path} is damaged (SHA-256 differs)")
        else:
            return path, entry["meta"], problems
    raise ValueError(f"resume: {directory.parent} holds no usable checkpoint" + "".join(f"; {p}" for p in problems))


def _entries(directory: Path) -> list[dict[str, Any]]:
    """Return the entries of the manifest, newest first; an empty list if the manifest is missing or malformed."""
    try:
        listed = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["checkpoints"]
        for entry in listed:
            meta = entry["meta"]
            sound = isinstance(entry["file"], str) and all(meta[key] >= 0 for key in _NUMBERS)
            sound = sound and all(isinstance(meta[key], dict) for key in _OBJECTS)
            if not sound or set(meta) != {*_NUMBERS, *_OBJECTS}:
                return []
        return listed
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
