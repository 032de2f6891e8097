"""Weights to start from, and to exchange: of a run, of a file, or of one of the experts that come with simsfl.

A file of weights holds safetensors named ``client.NAME`` and ``server.NAME``, and as metadata the config of their
network. The layout of the published program, which `to_published` writes and `from_published` reads, is the state dict
of an `nn.Sequential` for each half, in which the shortcut of a block comes last.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from torch import Tensor, nn

from simsfl.config import RunConfig
from simsfl.models import FlatModule, SplitModel
from simsfl.models.flat import flattened, pieces
from simsfl.runs import checkpoint
from simsfl.runs.directory import RunDirectory
from simsfl.setup import assembly
from simsfl.setup.defaults import resolve
from simsfl.system.decoding import decode, parse_json
from simsfl.system.messages import unknown, visible
from simsfl.system.tensor_file import open_tensors, write_tensors

log = logging.getLogger(__name__)

EXPERTS = Path(__file__).parent / "experts"
"""Directory of the experts that come with simsfl."""
HALVES = ("client", "server")
"""Names of the halves of a network, on either side of the cut layer."""
_METHOD = ("method", "objective", "supervised")
"""Fields of a config that determine what the method adds to a network."""


@dataclass(frozen=True)
class Weights:
    """The weights of one half of a network or of both, including running statistics."""

    origin: str
    """Where the weights come from, such as a path, for messages."""
    config: RunConfig
    """Config of the run that they come from, or only those of its fields that determine the network."""
    client: Mapping[str, Tensor]
    """Weights and running statistics of the client's half by name; empty if only the server's half is there."""
    server: Mapping[str, Tensor]
    """Weights and running statistics of the server's half by name; empty if only the client's half is there."""

    def initialise(self, model: SplitModel, config: RunConfig, *, server: bool) -> None:
        """Set the initial weights of the client's half of a network to these.

        Args:
            model: the network, changed in place.
            config: config that the network was built from.
            server: whether to set those of the server's half as well.

        Raises:
            ValueError: the weights do not fit the network, or a half is missing; the first difference is named.
        """
        for half in HALVES if server else HALVES[:1]:
            own, given = getattr(model, half), getattr(self, half)
            if not given and own.size:
                raise ValueError(f"init_{half}: {self.origin} has no weights of the {half}; allowed: others")
            if difference := _difference(own, given):
                name, here, there = difference
                raise ValueError(
                    f"init_{half}: {self.origin} is of another network: {half} {name} is {there} there, and {here} "
                    "here; allowed: the same architecture, width, cut layer, bottleneck, norm, head and key_dim"
                )
            own.initial, own.initial_statistics = (
                flattened({name: given[name].float() for name in names}) for names in (own.shapes, own.statistic_shapes)
            )
        theirs = assembly.network(replace(self.config, image_size=config.image_size), weights=False).smashed_shape
        if theirs != model.smashed_shape:
            there, here = ("maps of " + "x".join(map(str, shape)) for shape in (theirs, model.smashed_shape))
            raise ValueError(
                f"init_client: {self.origin} sends {there}, and clients here {here}; allowed: the same shape"
            )

    def module(self, half: str, model: SplitModel) -> nn.Module:
        """Return a half of a network, "client" or "server", as a module in evaluation mode that has these weights.

        Args:
            half: the half.
            model: the network, which these weights fit.
        """
        own, given = getattr(model, half), getattr(self, half)
        values = (
            flattened({name: given[name].float() for name in names}) for names in (own.shapes, own.statistic_shapes)
        )
        return own.module(*values).eval()

    def save(self, path: Path) -> None:
        """Write the weights into a file, in float32.

        Raises:
            OSError: the file cannot be written.
        """
        config = self.config.network() | {name: getattr(self.config, name) for name in _METHOD}
        tensors = {f"{half}.{name}": tensor.float() for half in HALVES for name, tensor in getattr(self, half).items()}
        origin = visible(Path(self.origin).name)
        write_tensors(path, tensors, {"config": json.dumps(config), "origin": origin})


def _difference(half: FlatModule, given: Mapping[str, Tensor]) -> tuple[str, str, str] | None:
    """Find the first tensor in which weights do not fit a half of a network.

    Returns:
        Its name, and its shape in the network and among the weights as text; None if all tensors fit.
    """
    shapes = {**half.shapes, **half.statistic_shapes}
    for name in [*shapes, *given]:
        here, there = map(shape_text, (shapes.get(name), given[name].shape if name in given else None))
        if here != there:
            return name, here, there
    return None


def shape_text(shape: Sequence[int] | None) -> str:
    """Return a shape for messages, such as "64x3x3x3", None being that of a tensor that is not there."""
    return "nothing" if shape is None else "x".join(map(str, shape)) or "a number"


def experts() -> list[str]:
    """Return the names of the experts that come with simsfl, sorted."""
    return sorted(path.stem for path in EXPERTS.glob("*.safetensors"))


def load_weights(source: str) -> Weights:
    """Read weights.

    Args:
        source: a run directory, a file of weights, or the name of an expert that comes with simsfl.

    Raises:
        ValueError: `source` is none of these, or cannot be read.
    """
    path = EXPERTS / f"{source}.safetensors" if source in experts() else Path(source)
    if path.is_dir():
        try:
            return _of_run(path)
        except ValueError as error:
            raise ValueError(f"init_client: {str(error).removeprefix('resume: ')}") from error
    if not path.is_file():
        raise unknown("init_client", source, experts(), also="the directory of a run, or a file of weights")
    try:
        return _of_file(path)
    except ValueError as error:
        why = str(error).removeprefix(f"{path} is ")
        raise ValueError(
            f"init_client: {path} is no file of weights ({why}); allowed: the directory of a run, or a file of weights"
        ) from error


def _of_file(path: Path) -> Weights:
    """Read a file that `Weights.save` wrote.

    Raises:
        ValueError: the file is damaged, or is something else.
    """
    halves: dict[str, dict[str, Tensor]] = {half: {} for half in HALVES}
    with open_tensors(path) as file:
        about = file.metadata() or {}
        if "config" not in about:
            raise ValueError("it does not say of which network it is")
        config = decode(RunConfig, parse_json(about["config"]))
        for name in file.keys():  # noqa: SIM118 - safe_open is not a dictionary
            half, _, own = name.partition(".")
            if half not in halves:
                raise ValueError(f"it holds {name}, which is of no half of a network")
            halves[half][own] = file.get_tensor(name)
    return _sound(Weights(str(path), config, **halves))


def _of_run(path: Path) -> Weights:
    """Read the averaged client model and the server from the newest checkpoint in a run directory.

    Raises:
        ValueError: the directory holds no run, or no usable checkpoint.
    """
    directory = RunDirectory(path)
    run = directory.read_config()
    model = assembly.network(run.config, weights=False)
    found = checkpoint.newest(directory.checkpoints, run.identity)
    for problem in found.problems:
        log.warning("%s", problem)
    halves: dict[str, dict[str, Tensor]] = {}
    with open_tensors(found.path) as tensors:
        for half, part in zip(HALVES, ("clients", "server"), strict=True):
            own = getattr(model, half)
            halves[half] = {}
            for name, shapes in (("online", own.shapes), ("online_statistics", own.statistic_shapes)):
                flat = tensors.get_tensor(f"{part}.{name}")
                if flat.shape != (sum(map(prod, shapes.values())),):
                    raise ValueError(f"{found.path} is not of the network that config.json describes")
                halves[half] |= pieces(flat, shapes)
    return _sound(Weights(str(path), run.config, **halves))


def _sound(weights: Weights) -> Weights:
    """Return weights, or raise a ValueError unless they are finite numbers that fit the network of their own config."""
    config = resolve(replace(weights.config, device="cpu"))
    model = assembly.network(replace(config, image_size=config.image_size or 32), weights=False)
    for half in HALVES:
        given = getattr(weights, half)
        if given and (difference := _difference(getattr(model, half), given)):
            name, wanted, held = difference
            raise ValueError(f"{half}.{name} is {held}, but {wanted} in the network that it says to be of")
        for name, tensor in given.items():
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ValueError(f"{half}.{name} holds something other than finite numbers")
    return weights


def published_names(half: FlatModule) -> dict[str, str]:
    """Return the published name of each tensor of a half, by its name here, in the published order.

    The published names are those of ResNets; other networks are named by the same rules.
    """
    blocks: dict[str, list[str]] = {}
    names = list(half.template.state_dict())
    for name in names:
        blocks.setdefault(re.sub(r"\.(conv\d|shortcut)\..*", "", name), []).append(name)
    ordered = [name for block in blocks.values() for name in sorted(block, key=lambda name: ".shortcut." in name)]
    behind = 2 + max((int(name.split(".")[1]) for name in names if name.startswith("backbone.")), default=-1)
    rules = (
        (r"^backbone\.", ""),
        (r"^head\.", f"{behind}."),  # average pooling is one more layer there
        (r"\.shortcut\.conv\.", ".shortcut.0."),
        (r"\.shortcut\.norm\.", ".shortcut.1."),
        (r"\.conv(\d)\.conv\.", r".conv\1."),
        (r"\.conv(\d)\.norm\.", r".bn\1."),
        (r"\.conv\.", ".conv1."),
        (r"\.norm\.", ".bn1."),
    )
    published = {}
    for name in ordered:
        other = name
        for pattern, replacement in rules:
            other = re.sub(pattern, replacement, other)
        published[name] = other
    return published


def to_published(half: FlatModule, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a half in the published layout.

    Args:
        half: the half of the network.
        tensors: its weights and running statistics by name.
    """
    return {other: tensors[name].clone() for name, other in published_names(half).items()}


def mismatch(half: FlatModule, given: Mapping[str, Tensor]) -> tuple[int, str] | None:
    """Find the first tensor of a published state dict that does not fit a half, by position and shape.

    Returns:
        The position, counted from 0, and a text that says how the tensors differ; None if all tensors fit.
    """
    own = {**half.shapes, **half.statistic_shapes}
    here = [f"{name} {tuple(own[name])}" for name in published_names(half)]
    shapes = [tuple(own[name]) for name in published_names(half)]
    theirs = _usable(given)
    there = [f"{key} {tuple(tensor.shape)}" for key, tensor in theirs]
    for position in range(max(len(here), len(there))):
        fits = position < min(len(here), len(there)) and tuple(theirs[position][1].shape) == shapes[position]
        if not fits:
            one, other = (names[position] if position < len(names) else "nothing" for names in (there, here))
            return position, f"tensor {position + 1} is {one} in the file, and {other} in the network"
    return None


def from_published(half: FlatModule, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a half, by name, from a published state dict that has no `mismatch` with it."""
    return {name: tensor for name, (_, tensor) in zip(published_names(half), _usable(given), strict=True)}


def _usable(given: Mapping[str, Tensor]) -> Sequence[tuple[str, Tensor]]:
    """Return the names and tensors of a state dict without BatchNorm's counts of batches, which nothing here needs."""
    return [(key, tensor) for key, tensor in given.items() if not key.endswith("num_batches_tracked")]
