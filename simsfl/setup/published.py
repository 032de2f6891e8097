"""Weights in the published program's files, each of which holds the state dict of one half of a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from simsfl.config import RunConfig
from simsfl.setup import assembly
from simsfl.setup.state_dict import read_state_dict
from simsfl.setup.weights import HALVES, Weights, from_published, mismatch


def load_published(files: Sequence[Path], config: RunConfig, field: str, allowed: Sequence[str] = HALVES) -> Weights:
    """Read the state dicts of one half of a network, or of both; nothing in the files is executed.

    Args:
        files: paths of the files, in any order.
        config: config of the network that they are of, with every rule applied and its image size.
        field: name of the flag that the files are given by, for errors.
        allowed: the halves that the files may hold, "client" or "server".

    Raises:
        ValueError: a file is missing or damaged, or of another network.
    """
    model = assembly.network(config, weights=False)
    halves: dict[str, dict[str, Tensor]] = {half: {} for half in HALVES}
    for file in files:
        given = read_state_dict(file, 16 * (model.client.size + model.server.size), field)
        wrong = {half: mismatch(getattr(model, half), given) for half in allowed}
        half = next((half for half in allowed if wrong[half] is None), None)
        if half is None:
            half = max(allowed, key=lambda half: wrong[half][0])
            flags = f"--arch {config.arch}, --cut-layer {config.cut_layer}, --bottleneck {config.bottleneck}"
            raise ValueError(f"{file}: {wrong[half][1]}; allowed: a {half} of {flags}, --norm {config.norm}")
        if halves[half]:
            raise ValueError(f"{field}: {file} is a second {half}; allowed: one client and one server")
        halves[half] = from_published(getattr(model, half), given)
    return Weights(", ".join(map(str, files)), config, **halves)
