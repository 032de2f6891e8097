"""Checkpoints: safetensors and JSON, written whole or not at all, checked before use.

``manifest.json`` lists the files with their SHA-256, newest first. It is replaced after the file it names
is on disk, and older files are deleted after that, so at every moment it names only whole files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from simsfl.system.files import digest, write_json
from simsfl.system.tensor_file import Rows, write_tensors

KEEP = 2
"""Checkpoints kept, so that there is one to go back to when the newest is damaged."""
NUMBERS = ("round", "step", "seconds", "metrics_bytes", "peak_memory_bytes")
"""What is kept beside the tensors: where the run stands."""
OBJECTS = ("communication", "traffic", "phase_seconds")
"""The same, as objects of their own."""


def save(directory: Path, name: str, tensors: Mapping[str, Tensor | Rows], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint and forget all but the newest `KEEP`.

    Args:
        name: of the file, without its ending. Names sort by time: listed checkpoints that do not come before
            this one were gone back from, and are forgotten.
        tensors: everything to restore, by name.
        meta: the values of `NUMBERS` and `OBJECTS`.

    Raises:
        OSError: it cannot be written; what was there still is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = f"{name}.safetensors"
    older = [entry for entry in entries(directory) if entry["file"] < file]
    sha256 = write_tensors(directory / file, tensors)
    newest = {"file": file, "sha256": sha256, "meta": dict(meta)}
    kept = [newest, *older][:KEEP]
    write_json(directory / "manifest.json", {"checkpoints": kept})
    for path in directory.glob("*.safetensors"):
        if path.name not in {entry["file"] for entry in kept}:
            path.unlink()


def newest(directory: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint that is whole.

    Returns:
        Its safetensors file, its meta, and a line on each newer checkpoint that was not whole.

    Raises:
        ValueError: there is none.
    """
    problems = []
    for entry in entries(directory):
        path = directory / entry["file"]
        if not path.is_file():
            problems.append(f"checkpoint {path} is missing")
        elif digest(path) != entry["sha256"]:
            problems.append(f"checkpoint {path} is damaged (SHA-256 differs)")
        else:
            return path, entry["meta"], problems
    raise ValueError(f"resume: {directory.parent} holds no usable checkpoint" + "".join(f"; {p}" for p in problems))


def entries(directory: Path) -> list[dict[str, Any]]:
    """What the manifest lists, newest first; nothing where there is no readable manifest."""
    try:
        listed = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["checkpoints"]
        for entry in listed:
            meta = entry["meta"]
            sound = isinstance(entry["file"], str) and all(meta[key] >= 0 for key in NUMBERS)
            sound = sound and all(isinstance(meta[key], dict) for key in OBJECTS)
            if not sound or set(meta) != {*NUMBERS, *OBJECTS}:
                return []
        return listed
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
