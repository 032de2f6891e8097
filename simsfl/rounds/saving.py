"""Saving of a run into its run directory, and loading of it from there."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from simsfl.algorithm.communication import Exchange
from simsfl.algorithm.state import same_shape
from simsfl.config.catalogue import DATASETS, HUB
from simsfl.data import Dataset
from simsfl.rounds.progress import NonFiniteLossError, Progress
from simsfl.runs import checkpoint
from simsfl.runs.checkpoint import SEAL, Found, Timed
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics_log import Extent
from simsfl.runs.records import RunRecord
from simsfl.setup.defaults import with_possible_precision
from simsfl.setup.parts import Parts, build, load_images
from simsfl.setup.weights import load_weights
from simsfl.system.files import digest
from simsfl.system.tensor_file import Once, Rows, blocks_of, open_tensors
from simsfl.system.world import ALONE, World

PLACES = ("dataset", "data_dir", "aux_dataset")
"""Fields of the config that say where the images lie."""
log = logging.getLogger(__name__)


class InputsError(ValueError):
    """The error that images or files that a run was trained with cannot be had, or that images are others."""


def save(
    path: str | Path,
    parts: Parts,
    progress: Progress,
    timed: Timed,
    metrics: Extent,
    given: Iterable[object] = (),
) -> None:
    """Write a checkpoint into the run directory `path`, which is created if it does not exist.

    Of several ranks, all of which have to call this, the first one writes what all of them have.

    Args:
        path: the run directory.
        parts: the parts of the simulation, with the state to save.
        progress: how far the run has come.
        timed: what was timed in the run so far.
        metrics: the part of ``metrics.jsonl`` that belongs to this state.
        given: objects from Python that take part in the run; see `names_of`.

    Raises:
        ValueError: the directory holds another run.
        NonFiniteLossError: training has diverged; nothing is written.
        OSError: the checkpoint cannot be written.
    """
    tensors = _tensors(parts, progress, of_all=True)
    if not _are_finite(tensors):
        where = progress.round_index, progress.step_index
        raise NonFiniteLossError.of("weights are not finite", *where, parts.config)
    world = parts.world
    with world.agreeing():  # so that none goes on if the first cannot write
        if world.alone:
            _write(path, parts, progress, tensors, timed, metrics, given)
            return
        once = {name: Once(tensor) if isinstance(tensor, Rows) else tensor for name, tensor in tensors.items()}
        try:
            if world.rank == 0:
                _write(path, parts, progress, once, timed, metrics, given)
        finally:  # each rank reads all blocks, because all do so together: also those that the first cannot write
            for tensor in once.values():
                deque(blocks_of(tensor), maxlen=0)


def _write(
    path: str | Path,
    parts: Parts,
    progress: Progress,
    tensors: Mapping[str, Tensor | Rows | Once],
    timed: Timed,
    metrics: Extent,
    given: Iterable[object],
) -> None:
    """Write tensors as a checkpoint; see `save` for the arguments and errors."""
    directory = RunDirectory(path)
    if directory.config.exists():
        run = directory.check_same(parts.config, parts.dataset, parts.given)
        checkpoint.save(directory.checkpoints, tensors, progress.standing(metrics, run.identity), timed)
        return
    directory.check_free(overwrite=False)
    with directory.appearing() as new:
        if parts.start:
            with new.outputs.replacing(new.start.name) as file:
                parts.start.save(file)
        run = new.record(
            parts.config,
            parts.by_rule,
            parts.reasons,
            parts.dataset,
            parts.choices,
            callbacks=names_of(given),
            partition=parts.given,
        )
        checkpoint.save(new.checkpoints, tensors, progress.standing(metrics, run.identity), timed)


def load(
    path: str | Path,
    dataset: Dataset | None = None,
    *,
    device: str | None = None,
    places: Mapping[str, str] | None = None,
    going_on: bool = False,
    world: World = ALONE,
) -> tuple[Parts, Progress, Found, RunRecord]:
    """Load the run in the run directory `path` from its newest usable checkpoint.

    Args:
        path: the run directory.
        dataset: the images, instead of loading those that the run's config names.
        device: device to continue on, instead of the run's; if it does not support the precision of the run, the run
            continues in fp32, with a warning.
        places: where the images lie now, by those of `PLACES` that are to be other than in the run's config; and
            "track", if other trackers are to get its records.
        going_on: whether ``metrics.jsonl`` will be continued, so that it has to begin as it did at the checkpoint.
        world: the ranks that go on together; there may be others than when the checkpoint was written.

    Returns:
        The parts with the state of the checkpoint, the progress, the checkpoint, and what was recorded of the run.

    Raises:
        InputsError: the images cannot be had, or are not those of the run; or a file of an option is gone.
        ValueError: there is no run, or no usable checkpoint.
    """
    directory = RunDirectory(path)
    saved = directory.read_config()
    wanted = directory.checkpoints, saved.identity, directory.metrics if going_on else None
    found = checkpoint.newest(*wanted)
    config = replace(saved.config, **(places or {}), **({"device": device} if device else {}))
    if device:
        config = with_possible_precision(config)
    start = None
    if config.init_client or config.init_backbone:
        if saved.start not in (None, digest(directory.start) if directory.start.is_file() else ""):
            raise ValueError(f"resume: {directory.start} is damaged, or was edited; allowed: as the run wrote it")
        start = load_weights(str(directory.start))
    partition = directory.read_partition(saved)
    try:
        files = saved.config.files
    except ValueError as error:
        raise InputsError(str(error)) from error
    for name, file in files.items():
        recorded = saved.files.get(name)
        if recorded and not Path(file).is_file():
            raise InputsError(
                f"{name}: there is no file {file}, with which the run in {path} began; allowed: that file"
            )
        if recorded and digest(Path(file)) != recorded:
            log.warning("%s: %s has changed since the run in %s began", name, file, path)
    try:
        dataset = load_images(config, dataset)
    except (ValueError, OSError) as error:
        if _is_from_python(config.dataset):
            raise InputsError(
                f"dataset: {config.dataset} was passed from Python when the run in {path} began; allowed: "
                f"simsfl.resume({str(path)!r}, dataset=...), or --dataset with a file of the same images"
            ) from error
        raise InputsError(str(error)) from error
    _check_images(path, saved, dataset)
    parts = build(config, dataset, partition=partition, choices=saved.choices, start=start, world=world)
    progress = Progress.of(parts)
    if not found.path.exists():  # a process that trains the run has written newer ones meanwhile
        found = checkpoint.newest(*wanted)
    try:
        progress.restore(parts, found.standing, found.timed)
        _restore(found.path, parts, progress)
    except ValueError as error:
        raise ValueError(f"resume: {found.path} is not of the run that config.json describes ({error})") from error
    return parts, progress, found, saved


def names_of(given: Iterable[object]) -> list[str]:
    """Return the names of the classes of callbacks, observers and wires, each once, but of none of simsfl's own.

    They are recorded where a run begins, because a run that is resumed without them may go another way.
    """
    kinds = dict.fromkeys(type(one) for one in given)
    return list(dict.fromkeys(kind.__name__ for kind in kinds if not kind.__module__.startswith("simsfl.")))


def _is_from_python(dataset: str) -> bool:
    """Return whether a run's data set is none that has a name or a path, but one that was made in Python."""
    return not (dataset in DATASETS or Path(dataset).is_absolute() or dataset.startswith(HUB))


def _check_images(path: str | Path, saved: RunRecord, dataset: Dataset) -> None:
    """Raise an InputsError unless these are the images of the run; warn if files among them have changed since."""
    if not saved.dataset.is_of(dataset):
        raise InputsError(
            f"dataset: {dataset.name} is not what the run in {path} was trained on; allowed: the same images, by "
            "--dataset, or in Python by `dataset`"
        )
    if saved.dataset.sha256 != dataset.checksum:
        log.warning(
            "dataset: files in %s have other sizes than when the run in %s began, so it may not end with the same "
            "result as without the change",
            dataset.name,
            path,
        )


def _tensors(parts: Parts, progress: Progress, *, of_all: bool) -> dict[str, Tensor | Rows]:
    """Return the tensors that a checkpoint holds, by name, or this rank's part of them.

    Args:
        parts: the parts of the simulation.
        progress: how far it has come.
        of_all: whether the rows of all ranks are meant, who have to call this together then.
    """
    held = parts.state.saved if of_all else parts.state.own
    return {**held(sent=progress.communication.needs_sent(progress.step_index)), "step_metrics": progress.figures}


@torch.no_grad()
def _restore(path: Path, parts: Parts, progress: Progress) -> None:
    """Copy the tensors of a checkpoint into the state and the progress.

    Raises:
        ValueError: the checkpoint is of another network, or of other clients, or its values are impossible.
    """
    config = parts.config
    if progress.round_index * progress.steps + progress.step_index > config.rounds * progress.steps:
        raise ValueError("it is beyond the end of the run")
    if progress.communication.state is not Exchange.BOTH_WAYS and not config.loss_threshold:
        raise ValueError(f"communication {progress.communication.state.value} is never saved in it")
    with open_tensors(path) as file:
        held, wanted = set(file.keys()) - {SEAL}, set(_tensors(parts, progress, of_all=False))
        unused = {name for name in held - wanted if name.startswith(("queue.", "queues."))}  # of earlier versions
        if held - unused != wanted:
            raise ValueError("it holds other tensors")
        parts.state.restore_(file, sent=progress.communication.needs_sent(progress.step_index))
        progress.figures.copy_(same_shape(file.get_tensor("step_metrics"), progress.figures))
    parts.state.check(config.rounds, len(parts.dataset.classes))
    if not _are_finite(_tensors(parts, progress, of_all=False)):
        raise ValueError("its weights are not finite")


def _are_finite(tensors: Mapping[str, Tensor | Rows]) -> bool:
    """Return whether all values of tensors are finite."""
    return all(_is_finite(block) for tensor in tensors.values() for block in blocks_of(tensor))


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, without allocating a temporary as large as the tensor."""
    return tensor.numel() == 0 or all(math.isfinite(extreme) for extreme in torch.stack(tensor.aminmax()).tolist())
