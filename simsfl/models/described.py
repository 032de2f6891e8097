"""The client's half of a network, from a description of it: that of a client trace, or of a device profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simsfl.config import RunConfig
from simsfl.config.notation import Bottleneck
from simsfl.models import FlatModule, Style, client_model


def client_of(network: Mapping[str, Any]) -> FlatModule:
    """Return the client's half of the network that fields of a config describe, without weights.

    Args:
        network: values of the fields that `RunConfig.network` returns, of which those of the head do not matter.

    Raises:
        ValueError: an option is not one of the architecture, or cannot have its value.
    """
    return client_model(
        network["arch"],
        width=network["width"],
        cut_layer=network["cut_layer"],
        image_size=network["image_size"],
        style=Style(network["norm"], network["weight_standardisation"]),
        bottleneck=Bottleneck.parse(network["bottleneck"]) if network["bottleneck"] else None,
        client_residual=network["client_residual"],
        options=RunConfig(arch=network["arch"], options=network.get("options", {})).options_of("arch"),
    )
