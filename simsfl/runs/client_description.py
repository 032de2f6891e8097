"""The description of a client that goes with its client trace, or to the device that takes its part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from simsfl.cost.model import COLOURS, memory, operations
from simsfl.models import FlatModule


def about_client(
    model: FlatModule,
    *,
    client: int,
    network: Mapping[str, Any],
    mean: Tensor,
    std: Tensor,
    batch_size: int,
    learns: bool,
    optimiser: Mapping[str, Any],
    session: Mapping[str, int],
) -> dict[str, Any]:
    """Return the content of ``trace.json``, but for the format and the number of visits, which `TraceWriter` adds.

    Args:
        model: the client's half of the network.
        client: id of the client.
        network: settings that determine the network (`RunConfig.network`).
        mean, std: tensors of 3 values each, by which images are normalised.
        batch_size: images per step.
        learns: whether the client learns, so that it needs gradients and a backward pass.
        optimiser: values of "tau", "momentum", "weight_decay" and "precision".
        session: expected number of "steps" of the client in a whole run, and of bytes that it sends, "bytes_up", and
            receives, "bytes_down".
    """
    shape = (COLOURS, network["image_size"], network["image_size"])
    one = operations(model, shape, of_images=True)
    return {
        "client": client,
        "network": dict(network),
        "images": {"mean": mean.flatten().tolist(), "std": std.flatten().tolist()},
        "shapes": {name: list(own) for name, own in model.shapes.items()},
        "statistic_shapes": {name: list(own) for name, own in model.statistic_shapes.items()},
        "optimiser": dict(optimiser),
        "session": dict(session),
        "cost": {
            "flops": {"query": one.forward, "key": one.forward, "backward": one.backward if learns else 0},
            "memory": asdict(memory(model, shape, batch_size, learns=learns)),
        },
    }
