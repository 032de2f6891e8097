"""Figures about an attack: the sheet of reconstructions, and the errors of its decoder."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from simsfl.attacks import SIMILARITIES, Result
from simsfl.ui.plot_text import literal

_NARROWEST = 5.0
"""Least width of the sheet in inches, for its title."""
_MARKED = 20
"""Number of epochs from which on their errors are a line without marks."""


def sheet(originals: torch.Tensor, result: Result, name: str) -> Figure:
    """Draw originals above their reconstructions.

    Args:
        originals: images ``[n, 3, H, H]`` in [0, 1].
        result: the attack, whose first `n` reconstructions are shown.
        name: name of the attack.
    """
    size = (max(0.85 * len(originals) + 0.6, _NARROWEST), 2.2)
    figure, axes = plt.subplots(2, len(originals), figsize=size, squeeze=False, layout="constrained")
    made = result.reconstructions[: len(originals)]
    for line, title, row in zip(axes, ("original", "made of it"), (originals, made), strict=True):
        for axis, image in zip(line, row, strict=True):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=8)
    similarities = {"zeros": result.ssim, "mirror": result.ssim_mirrored}
    scores = ", ".join(f"{SIMILARITIES[borders]} {own:.3f}" for borders, own in similarities.items())
    figure.suptitle(f"{literal(name)}\n{scores}, MSE {result.mse:.4f}", fontsize=9)
    return figure


def curves(results: Sequence[Result], seeds: Sequence[int], *, hijacked: bool) -> Figure:
    """Draw the mean squared error of decoders, on images that they learn from and on others.

    Args:
        results: results of attacks that train a decoder.
        seeds: seed of each of them.
        hijacked: whether the server trained clients as well: the others are then the target images, after each round.
    """
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for result, seed in zip(results, seeds, strict=True):
        epochs = range(1, len(result.training.train) + 1)
        mark = "." if len(epochs) < _MARKED else ""
        (line,) = axis.plot(epochs, result.training.train, marker=mark, label=f"seed {seed}, trained on")
        others = "target images" if hijacked else "held out"
        how = {"color": line.get_color(), "marker": mark, "label": f"seed {seed}, {others}"}
        axis.plot(epochs, result.training.held_out, "--", **how)
    axis.set(xlabel="round" if hijacked else "epoch", ylabel="mean squared error", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
