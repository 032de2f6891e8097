"""Starting from the weights of a backbone that was trained elsewhere: by torchvision, by timm, or in another run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
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
_LISTED = 4
"""Names in each part of a message, at most."""


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
    used, unfit, missing = [], [], []
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
                unfit.append(f"{key} (another normalisation)")
            elif tensor.shape != drawn.shape:
                unfit.append(f"{key} ({shape_text(given[key].shape)} there, {shape_text(drawn.shape)} here)")
            else:
                halves[half][name] = tensor
    unused = [name for name in given if name not in used and not name.endswith("num_batches_tracked")]
    if len(used) == len(unfit):
        first = f"does not fit: {unfit[0]}" if unfit else f"has other names, such as {unused[0] if unused else 'none'}"
        source = "torchvision, timm or simsfl export" if known else "simsfl export"
        raise ValueError(
            f"init_backbone: nothing in {file} fits {config.arch}, it {first}; allowed: weights of {source} for this "
            "network"
        )
    parts = {"does not fit": unfit, "not in the file": missing, "not used": unused}
    if any(parts.values()):
        count = f"{len(used) - len(unfit)} of the backbone's {len(here)} tensors start from {file}"
        log.warning("init_backbone: %s", "; ".join([count, *(_listed(*part) for part in parts.items() if part[1])]))
    return Weights(file, config, **halves)


def _of_batch_norm(name: str, names: Collection[str]) -> bool:
    """Return whether a tensor is of a BatchNorm layer, given the names of all tensors."""
    return f"{name.rpartition('.')[0]}.running_mean" in names


def _listed(title: str, names: Sequence[str]) -> str:
    """Return a title with the first of some names behind it, and the number of the others."""
    others = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{title}: {', '.join(names[:_LISTED])}{others}"
