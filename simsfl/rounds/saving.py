"""Saving of a run into its run directory, and loading of it from there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simsfl.algorithm.state import same_shape
from simsfl.config import RunConfig
from simsfl.data import Dataset
from simsfl.rounds.progress import NonFiniteLossError, Progress
from simsfl.runs import checkpoint
from simsfl.runs.directory import RunDirectory
from simsfl.setup.defaults import with_possible_precision
from simsfl.setup.parts import Parts, build
from simsfl.setup.weights import load_weights
from simsfl.system.tensor_file import Rows, blocks_of, open_tensors


def save(path: str | Path, parts: Parts, progress: Progress, timed: dict[str, Any], metrics_bytes: int) -> None:
    """Write a checkpoint into the run directory `path`, which is created if it does not exist.

    Args:
        path: the run directory.
        parts: the parts of the simulation, with the state to save.
        progress: how far the run has come.
        timed: ``phase_seconds`` and ``peak_memory_bytes`` of the run so far.
        metrics_bytes: length in bytes of the part of ``metrics.jsonl`` that belongs to this state.

    Raises:
        ValueError: the directory holds another run.
        NonFiniteLossError: training has diverged; nothing is written.
        OSError: the checkpoint cannot be written.
    """
    tensors = _tensors(parts, progress)
    now = f"round {progress.round_index + 1}, step {progress.step_index}"
    if not all(_is_finite(block) for tensor in tensors.values() for block in blocks_of(tensor)):
        raise NonFiniteLossError(f"weights are not finite in {now}")
    name = f"round-{progress.round_index:06d}-step-{progress.step_index:06d}"
    meta = progress.to_dict() | timed | {"metrics_bytes": metrics_bytes}
    directory = RunDirectory(path)
    if directory.config.exists():
        directory.check_same(parts.config, parts.dataset)
        checkpoint.save(directory.checkpoints, name, tensors, meta)
        return
    with directory.appearing() as new:
        new.record(parts.config, parts.by_rule, parts.reasons, parts.dataset, parts.choices)
        if parts.start:
            parts.start.save(new.start)
        checkpoint.save(new.checkpoints, name, tensors, meta)


def load(
    path: str | Path, dataset: Dataset | None = None, *, device: str | None = None
) -> tuple[Parts, Progress, dict[str, float], list[str]]:
    """Load the run in the run directory `path` from its newest usable checkpoint.

    Args:
        path: the run directory.
        dataset: the images, instead of loading those that the run's config names.
        device: device to continue on, instead of the run's; if it does not support the precision of the run, the run
            continues in fp32, with a warning.

    Returns:
        The parts with the state of the checkpoint, the progress, seconds by phase, and a line on each newer checkpoint
        that was not used because it is missing or damaged.

    Raises:
        ValueError: there is no run, no usable checkpoint, or the images are not those of the run.
    """
    directory = RunDirectory(path)
    saved = directory.read_config()
    config = RunConfig.from_dict(saved["config"] | ({"device": device} if device else {}))
    if device:
        config = with_possible_precision(config)
    start = load_weights(str(directory.start)) if config.init_client else None
    parts = build(config, dataset, choices=saved["choices"], start=start)
    if parts.dataset.checksum != saved["dataset"]["sha256"]:
        raise ValueError(f"dataset: {parts.dataset.name} is not what the run in {path} was trained on")
    file, meta, problems = checkpoint.newest(directory.checkpoints)
    progress = Progress.of(parts)
    progress.restore(meta)
    if progress.round_index > parts.config.rounds or progress.step_index > progress.steps:
        raise ValueError(f"resume: the checkpoint in {path} is later than the end of the run")
    _restore(file, parts, progress)
    return parts, progress, meta["phase_seconds"], problems


def _tensors(parts: Parts, progress: Progress) -> dict[str, Tensor | Rows]:
    """Return all tensors that a checkpoint holds, by name."""
    sent = progress.communication.needs_sent(progress.step_index)
    return {**parts.state.saved(sent=sent), "step_metrics": progress.figures}


@torch.no_grad()
def _restore(path: Path, parts: Parts, progress: Progress) -> None:
    """Copy the tensors of a checkpoint into the state and the progress.

    Raises:
        ValueError: the checkpoint belongs to another network or to other clients.
    """
    try:
        with open_tensors(path) as file:
            if set(file.keys()) != set(_tensors(parts, progress)):
                raise ValueError("it holds other tensors")
            parts.state.restore_(file, sent=progress.communication.needs_sent(progress.step_index))
            progress.figures.copy_(same_shape(file.get_tensor("step_metrics"), progress.figures))
    except ValueError as error:
        raise ValueError(f"resume: {path} is not of the run that config.json describes ({error})") from error


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, without allocating a temporary as large as the tensor."""
    return tensor.numel() == 0 or all(math.isfinite(extreme) for extreme in torch.stack(tensor.aminmax()).tolist())
