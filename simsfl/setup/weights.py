"""Weights to start from, and to hand around: of a run, of a file, of the experts that come with simsfl.

A file holds safetensors named ``client.NAME`` and ``server.NAME``, and as metadata the config they are of. The
published program's layout, which `to_published` gives and `from_published` takes, is the state dict of an
`nn.Sequential` for each half, in which a block's shortcut comes last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from simsfl.config import RunConfig
from simsfl.models import FlatModule, SplitModel
from simsfl.models.flat import flattened, pieces
from simsfl.runs import checkpoint
from simsfl.runs.directory import RunDirectory
from simsfl.setup import assembly
from simsfl.system.messages import unknown

EXPERTS = Path(__file__).parent / "experts"
"""Where the files are that come with simsfl."""
HALVES = ("client", "server")


@dataclass(frozen=True)
class Weights:
    """Of one half of a network or of both, by name, running statistics too."""

    origin: str
    """For people."""
    config: RunConfig
    """Of the run they come from, or what of it says how its network is made."""
    client: Mapping[str, Tensor]
    server: Mapping[str, Tensor]
    """Empty where they are of one half."""

    def initialise(self, model: SplitModel, *, server: bool) -> None:
        """Have a network start from them: its client, and if asked its server.

        Raises:
            ValueError: they are of another network; the first difference is named.
        """
        for half in HALVES if server else HALVES[:1]:
            own, given = getattr(model, half), getattr(self, half)
            if not given:
                raise ValueError(f"init_{half}: {self.origin} has no weights of the {half}; allowed: others")
            shapes = {**own.shapes, **own.statistic_shapes}
            for name in [*shapes, *given]:
                here, there = (
                    "nothing" if shape is None else "x".join(map(str, shape)) or "a number"
                    for shape in (shapes.get(name), given[name].shape if name in given else None)
                )
                if here != there:
                    raise ValueError(
                        f"init_{half}: {self.origin} is of another network: {half} {name} is {there} there, and {here} "
                        "here; allowed: the same architecture, width, cut layer, bottleneck, norm, head and key_dim"
                    )
            own.initial, own.initial_statistics = (
                flattened({name: given[name].float() for name in names}) for names in (own.shapes, own.statistic_shapes)
            )

    def save(self, path: Path) -> None:
        """Write them to a file.

        Raises:
            OSError: it cannot be written.
        """
        tensors = {
            f"{half}.{name}": tensor.float().contiguous()
            for half in HALVES
            for name, tensor in getattr(self, half).items()
        }
        metadata = {"config": json.dumps(self.config.network()), "origin": Path(self.origin).name}
        save_file(tensors, path, metadata=metadata)


def experts() -> list[str]:
    """Names of those that come with simsfl."""
    return sorted(path.stem for path in EXPERTS.glob("*.safetensors"))


def load_weights(source: str) -> Weights:
    """From a run's directory, a file, or the name of an expert.

    Raises:
        ValueError: there is nothing of the kind, or it cannot be read.
    """
    path = EXPERTS / f"{source}.safetensors" if source in experts() else Path(source)
    if path.is_dir():
        try:
            return of_run(path)
        except ValueError as error:
            raise ValueError(f"init_client: {str(error).removeprefix('resume: ')}; allowed: a run") from error
    if not path.is_file():
        raise unknown("init_client", source, experts(), also="the directory of a run, or a file of weights")
    halves: dict[str, dict[str, Tensor]] = {half: {} for half in HALVES}
    try:
        with safe_open(path, framework="pt") as file:
            config = RunConfig.from_dict(json.loads(file.metadata()["config"]))
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                half, _, own = name.partition(".")
                halves[half][own] = file.get_tensor(name)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"init_client: {path} is no file of weights ({error})") from error
    return Weights(str(path), config, **halves)


def of_run(path: Path) -> Weights:
    """The averaged client model and the server of a run's newest checkpoint.

    Raises:
        ValueError: there is no run, or no usable checkpoint.
    """
    directory = RunDirectory(path)
    config = RunConfig.from_dict(directory.read_config()["config"])
    model = assembly.network(config, weights=False)
    file, _, _ = checkpoint.newest(directory.checkpoints)
    halves = {}
    with safe_open(file, framework="pt") as tensors:
        for half, part in zip(HALVES, ("clients", "server"), strict=True):
            own = getattr(model, half)
            halves[half] = {
                **pieces(tensors.get_tensor(f"{part}.online"), own.shapes),
                **pieces(tensors.get_tensor(f"{part}.online_statistics"), own.statistic_shapes),
            }
    return Weights(str(path), config, **halves)


def published_names(half: FlatModule) -> dict[str, str]:
    """By our names, and in the published order, the published ones: those of ResNets, for other networks alike."""
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
    """A half's weights in the published layout."""
    return {other: tensors[name].clone() for name, other in published_names(half).items()}


def mismatch(half: FlatModule, given: Mapping[str, Tensor]) -> tuple[int, str] | None:
    """The first tensor of a published state dict, by position, that is none of a half's, and what it should be."""
    own = {**half.shapes, **half.statistic_shapes}
    here = [f"{name} {tuple(own[name])}" for name in published_names(half)]
    shapes = [tuple(own[name]) for name in published_names(half)]
    theirs = usable(given)
    there = [f"{key} {tuple(tensor.shape)}" for key, tensor in theirs]
    for position in range(max(len(here), len(there))):
        fits = position < min(len(here), len(there)) and tuple(theirs[position][1].shape) == shapes[position]
        if not fits:
            one, other = (names[position] if position < len(names) else "nothing" for names in (there, here))
            return position, f"tensor {position + 1} is {one} in the file, and {other} in the network"
    return None


def from_published(half: FlatModule, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A half's weights from a published state dict that has no `mismatch` with it: by position."""
    return {name: tensor for name, (_, tensor) in zip(published_names(half), usable(given), strict=True)}


def usable(given: Mapping[str, Tensor]) -> Sequence[tuple[str, Tensor]]:
    """All but BatchNorm's counts of batches, which nothing here needs."""
    return [(key, tensor) for key, tensor in given.items() if not key.endswith("num_batches_tracked")]
