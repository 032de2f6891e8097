"""The card of an exported network: what it is, how its images are normalised, how it is loaded and fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence

import simsfl
from simsfl.config import RunConfig
from simsfl.config.catalogue import ARCHITECTURES
from simsfl.ui.markdown import escaped, lines_of

_USED = """\
{result} = network(images)  # images [n, 3, {size}, {size}] float32, normalised as the table says"""
_TUNED = """\
import torch

classifier = torch.nn.Linear({features}, 10)  # as many as there are classes
optimiser = torch.optim.SGD([*network.parameters(), *classifier.parameters()], lr=0.01, momentum=0.9)
for images, labels in batches:  # normalised images [n, 3, {size}, {size}], and labels [n] int64
    loss = torch.nn.functional.cross_entropy(classifier(network(images)), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()"""

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, of pixels in [0, 1]."""


def card(
    part: str,
    config: RunConfig,
    loader: str,
    known: str | None,
    *,
    origin: str,
    shape: Sequence[int],
    statistics: Statistics | None,
) -> str:
    """Return the card of a file in Markdown.

    Args:
        part: what the file holds, "backbone" or "client".
        config: config of the network, with every rule applied.
        loader: code that loads the file.
        known: what it is in another library; None if it is for none.
        origin: where the weights come from.
        shape: shape of the network's output for one image.
        statistics: what images are normalised by; None where it is not known.
    """
    is_client, size = part == "client", config.image_size
    output = (
        f"smashed data [n, {', '.join(map(str, shape))}], what a client sends, before any defence"
        if is_client
        else f"features [n, {shape[0]}]: the output of the last layer, averaged over its places, which is what the "
        "projection head gets"
    )
    rows = {
        "written by": f"simsfl {simsfl.__version__}, from {origin}",
        "network": _network(config) + (f", up to cut layer {config.cut_layer}" if is_client else ""),
        "images": f"[n, 3, {size}, {size}] float32: RGB, pixels in [0, 1] minus the mean, divided by the std",
        "mean": _numbers(statistics[0]) if statistics else "that of the training images, which is not recorded",
        "std": _numbers(statistics[1]) if statistics else "that of the training images, which is not recorded",
        "output": output,
    } | ({"elsewhere": known} if known else {})
    used = _USED.format(size=size, result="smashed" if is_client else "features")
    sections = {"Load it": f"{loader}\n{used}"}
    if not is_client:
        sections["Fine-tune it"] = _TUNED.format(features=shape[0], size=size)
    lines = [f"# {escaped(f'The {part} of {origin}')}", "", *lines_of([["", ""], *map(list, rows.items())])]
    for title, code in sections.items():
        lines += ["", f"## {title}", "", "```python", code, "```"]
    return "\n".join(lines) + "\n"


def _network(config: RunConfig) -> str:
    """Return what a network is."""
    about = [f"{config.arch} of width {config.width}"]
    if ARCHITECTURES[config.arch].styled:
        about.append("GroupNorm in groups of 4 channels" if config.norm == "group" else "BatchNorm")
        about += ["weight standardisation folded into the convolutions"] * bool(config.weight_standardisation)
    about += [f"bottleneck {config.bottleneck} at cut layer {config.cut_layer}"] * (config.bottleneck is not None)
    about += ["no shortcuts on the client"] * (not config.client_residual)
    about += [f"{name.partition('.')[2]} {value}" for name, value in config.network().get("options", {}).items()]
    return ", ".join(about)


def _numbers(values: Sequence[float]) -> str:
    """Return the values of the channels."""
    return ", ".join(f"{value:.6g}" for value in values)
