"""Checkpoints: safetensors and JSON, written whole or not at all, checked before use.

``manifest.json`` lists the files with their SHA-256, newest first. It is replaced after the file it names
is on disk, and older files are deleted after that, so at every moment it names only whole files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from simsfl.files import replacing, write_json

KEEP = 2
"""Checkpoints kept, so that there is one to go back to when the newest is damaged."""


def save(directory: Path, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint and forget all but the newest `KEEP`.

    Args:
        name: of the file, without its ending. Names sort by time: listed checkpoints that do not come before
            this one were gone back from, and are forgotten.
        tensors: everything to restore, by name.
        meta: small JSON values that belong to it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = f"{name}.safetensors"
    older = [entry for entry in entries(directory) if entry["file"] < file]
    with replacing(directory / file) as temporary:
        save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, temporary)
        digest = sha256(temporary)
    newest = {"file": file, "sha256": digest, "meta": dict(meta)}
    kept = [newest, *older][:KEEP]
    write_json(directory / "manifest.json", {"checkpoints": kept})
    for path in (*directory.glob("*.safetensors"), *directory.glob(".*.tmp")):
        if path.name not in {entry["file"] for entry in kept}:
            path.unlink()


def load(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The newest checkpoint that is whole: its tensors, its meta, and a line on each that was not.

    Raises:
        ValueError: there is none.
    """
    problems = []
    for entry in entries(directory):
        path = directory / entry["file"]
        if not path.is_file():
            problems.append(f"checkpoint {path} is missing")
        elif sha256(path) != entry["sha256"]:
            problems.append(f"checkpoint {path} is damaged (SHA-256 differs)")
        else:
            return load_file(path), entry["meta"], problems
    raise ValueError(f"resume: {directory.parent} holds no usable checkpoint" + "".join(f"; {p}" for p in problems))


def entries(directory: Path) -> list[dict[str, Any]]:
    """What the manifest lists, newest first; nothing where there is no readable manifest."""
    try:
        listed = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["checkpoints"]
        return [{key: entry[key] for key in ("file", "sha256", "meta")} for entry in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def sha256(path: Path) -> str:
    """Checksum of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
