"""Starting from the weights of a backbone that was trained elsewhere: by torchvision, by timm, or in another run."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from simsfl.config import RunConfig
from simsfl.models.backbone import joined_names
from simsfl.models.names import as_here, known_names, other_names
from simsfl.setup import assembly
from simsfl.setup.state_dict import read_state_dict
from simsfl.setup.weights import HALVES, Weights, shape_text

log = logging.getLogger(__name__)

_MOST = 1 << 31
"""Bytes that the weights in a file take at most."""


def read_backbone(file: str) -> dict[str, Tensor]:
    """Return the tensors by name of the file that ``init_backbone`` names; raise a ValueError if it has no such."""
    return read_state_dict(Path(file), _MOST, "init_backbone")


def start_from(file: str, given: Mapping[str, Tensor], config: RunConfig) -> Weights:
    """Return the weights of a network that starts from a backbone, as far as that fits; the others are drawn as usual.

    A tensor fits if it has the name that torchvision, timm or ``simsfl export`` gives it, and its shape. Those of
    BatchNorm and GroupNorm do not fit each other, because they scale what was normalised in another way. One warning
    lists what does not fit.

    Args:
        file: where the tensors come from, for messages.
        given: the tensors by name.
        config: config of the network, with every rule applied and its image size.

    Raises:
        ValueError: nothing fits.
    """
    model = assembly.network(config)
    names = joined_names(model, config.cut_layer)
    here = [name for own in names.values() for name in own.values()]
    known = known_names(config.arch, here)
    halves: dict[str, dict[str, Tensor]] = {}
    used, missing = [], []
    unfit: dict[str, str] = {}
    for half in HALVES:
        own = getattr(model, half)
        halves[half] = own.named(own.initial) | own.named_statistics(own.initial_statistics)
        for name, whole in names[half].items():
            drawn = halves[half][name]
            key = next((key for key in (*other_names(known.get(whole, "")), whole) if key in given), None)
            if key is None:
                missing.append(whole)
                continue
            used.append(key)
            tensor = as_here(key, given[key], drawn.shape)
            if _of_batch_norm(key, given) != _of_batch_norm(whole, here):
                unfit[key] = "another normalisation"
            elif tensor.shape != drawn.shape:
                unfit[key] = f"{shape_text(given[key].shape)} there, {shape_text(drawn.shape)} here"
            else:
                halves[half][name] = tensor
    unused = [name for name in given if name not in used and not name.endswith("num_batches_tracked")]
    if len(used) == len(unfit):
        other = f"has other names, such as {unused[0] if unused else 'none'}"
        first = next((f"does not fit: {key} ({why})" for key, why in unfit.items()), other)
        source = "torchvision, timm or simsfl export" if known else "simsfl export"
        stem = given[next(iter(unfit))].shape if unfit else ()
        wider = f", or width {stem[0]}" if len(stem) == 4 and stem[0] != config.width else ""
        raise ValueError(
            f"init_backbone: nothing in {file} fits {config.arch} of width {config.width}, it {first}; allowed: "
            f"weights of {source} for this network{wider}"
        )
    parts = {"does not fit": unfit, "not in the file": dict.fromkeys(missing), "not used": dict.fromkeys(unused)}
    if any(parts.values()):
        count = f"{len(used) - len(unfit)} of the backbone's {len(here)} tensors start from {file}"
        log.warning("init_backbone: %s", "; ".join([count, *(_listed(*part) for part in parts.items() if part[1])]))
    return Weights(file, config, **halves)


def _of_batch_norm(name: str, names: Collection[str]) -> bool:
    """Return whether a tensor is of a BatchNorm layer, given the names of all tensors."""
    return f"{name.rpartition('.')[0]}.running_mean" in names


def _listed(title: str, names: Mapping[str, str | None]) -> str:
    """Return a title with names behind it, and why each is listed; those that differ in numbers alone are one.

    >>> _listed("not used", {"fc.bias": None, "layer1.0.bn1.bias": None, "layer2.1.bn1.bias": None})
    'not used: fc.bias, 2 layer*.*.bn*.bias'
    """
    alike: dict[tuple[str, str | None], list[str]] = {}
    for name, why in names.items():
        alike.setdefault((re.sub(r"\d+", "*", name), why), []).append(name)
    found = [
        (own[0] if len(own) == 1 else f"{len(own)} {pattern}") + (f" ({why})" if why else "")
        for (pattern, why), own in alike.items()
    ]
    return f"{title}: {', '.join(found)}"
