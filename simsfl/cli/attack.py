"""Reconstruct a client's images from what it sends."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

from simsfl import Simulation
from simsfl.cli.flags import add_plugin_flag
from simsfl.config.constraints import ATTACK, check
from simsfl.config.notation import Decoder
from simsfl.data.partition import Partition
from simsfl.engine.precision import arithmetic
from simsfl.privacy.attack import Result, attack, attackers_rows, pixels, spread, targets
from simsfl.rounds import evaluating
from simsfl.rounds.saving import PLACES
from simsfl.runs.records import AttackRecord, Scores, to_json
from simsfl.system.console import Output
from simsfl.system.memory import is_out_of_memory
from simsfl.system.messages import count_text
from simsfl.system.outputs import Outputs
from simsfl.system.progress import watched
from simsfl.ui.arguments import Parser, fail, path, seeds_of, value_of, whole_number
from simsfl.ui.dashboard import number

log = logging.getLogger(__name__)
_DESCENT = "descent"
"""Name of the attack that trains no decoder."""
_MARKED = 20
"""Number of epochs from which on their errors are a line without marks."""
_SHOWN = 12
"""Most images on the sheet."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument("run", type=path, metavar="RUN_DIR", help="run directory (method mocosfl)")
    result.add_argument(
        "--decoder",
        default="res_normN4C64",
        metavar="NAME",
        help="custom, conv_normN{blocks}C{channels}, res_normN{blocks}C{channels}, or descent, which optimises the "
        "image itself without data of the attacker (default: res_normN4C64)",
    )
    result.add_argument(
        "--attacker-data",
        type=value_of(float, "a number"),
        metavar="SHARE",
        help="share of the training images that the attacker has, drawn at random (default: 0.01)",
    )
    result.add_argument("--attack-seeds", default="0", metavar="N,N", help="seeds; each gives one attack (default: 0)")
    result.add_argument("--attack-epochs", type=whole_number, metavar="N", help="epochs of the decoder (default: 50)")
    result.add_argument(
        "--target-client",
        type=value_of(int, "a whole number"),
        default=0,
        metavar="ID",
        help="client whose images are reconstructed, and those of the next ones up to 128 images (default: 0)",
    )
    add_plugin_flag(result)
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    for name in PLACES:
        text = "where the run's images lie now, if not where they lay when it began"
        result.add_argument(f"--{name.replace('_', '-')}", metavar="STR", help=text)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Attack a run, print and write the results; return the exit code."""
    try:
        arguments = parser().parse(argv)
        seeds = seeds_of(arguments.attack_seeds, "attack_seeds")
        decoder = None if arguments.decoder == _DESCENT else Decoder.parse(arguments.decoder)
        if decoder is None and (arguments.attacker_data is not None or arguments.attack_epochs):
            raise ValueError("decoder: descent trains nothing; allowed: without --attacker-data and --attack-epochs")
        arguments.attacker_data = 0.01 if arguments.attacker_data is None else arguments.attacker_data
        arguments.attack_epochs = arguments.attack_epochs or 50
        if not 0 < arguments.attacker_data <= 1:
            raise ValueError(f"attacker_data: {arguments.attacker_data:g} is no share; allowed: more than 0, up to 1")
        places = {name: getattr(arguments, name) for name in PLACES if getattr(arguments, name)}
        simulation = Simulation.load(arguments.run, device=arguments.device, places=places)
        for problem in simulation.damaged:
            log.warning("%s", problem)
        with arithmetic(simulation.config.precision):
            _carry_out(arguments, simulation, decoder, seeds)
    except (ValueError, OSError, ArithmeticError) as error:
        return fail(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail(ValueError(f"memory: this attack does not fit ({error}); allowed: a smaller --attacker-data"))
    except KeyboardInterrupt:
        return 130
    return 0


def _carry_out(arguments: Any, simulation: Simulation, decoder: Decoder | None, seeds: list[int]) -> None:
    """Attack once for each seed; print the scores, and write them with the sheet and the curves into the run directory.

    Args:
        arguments: the program's flags.
        simulation: the run.
        decoder: the network that the attacker trains; None for descent.
        seeds: seeds of the attacks.

    Raises:
        ValueError: the run's method has no smashed data, or the target client does not exist.
    """
    config = simulation.config
    check(config, ATTACK)
    if not 0 <= arguments.target_client < config.clients:
        raise ValueError(f"target_client: {arguments.target_client} is no client; allowed: 0 to {config.clients - 1}")
    images, count = simulation.dataset.train, len(simulation.dataset.train_labels)
    rows = targets(simulation.parts.sources[0], arguments.target_client)
    client = evaluating.client(simulation.parts)
    name, out = arguments.decoder, Outputs(arguments.run, "run")
    names = {"record": f"attacks/{name}.json", "sheet": f"attacks/{name}.png", "curves": f"attacks/{name}-curves.png"}
    out.check(*names.values())
    results = [
        attack(
            client,
            images,
            rows,
            attackers_rows(count, arguments.attacker_data, rows, seed),
            decoder=decoder,
            seed=seed,
            epochs=arguments.attack_epochs,
            protect=simulation.parts.hyper.defence.protect,
            watch=lambda title, items, seed=seed: watched(items, f"{title}, seed {seed}"),
        )
        for seed in seeds
    ]
    record = _record(arguments, simulation, rows, seeds, results)
    out.write_json(names["record"], to_json(record))
    figures = {"sheet": _sheet(pixels(images, rows[:_SHOWN]).cpu(), results[0], name)}
    if decoder:
        figures["curves"] = _curves(results, seeds)
    for kind, figure in figures.items():
        with out.replacing(names[kind]) as file:
            figure.savefig(file)
        plt.close(figure)
    console = Output()
    console.print(_table(record))
    console.say(f"wrote {', '.join(str(out.path / names[kind]) for kind in figures)}")


def _record(
    arguments: Any, simulation: Simulation, rows: torch.Tensor, seeds: list[int], results: list[Result]
) -> AttackRecord:
    """Return what is written about the attacks.

    Args:
        rows: rows of the target images, int64 ``[n]``.
        seeds: seed of each of the `results`.
    """
    own = {
        score: [value if math.isfinite(value := getattr(result, score)) else None for result in results]
        for score in ("mse", "ssim", "psnr")
    }
    scores = {score: None if None in values else Scores(**spread(values)) for score, values in own.items()}
    return AttackRecord(
        decoder=arguments.decoder,
        attacker_data=arguments.attacker_data,
        epochs=arguments.attack_epochs,
        target_client=arguments.target_client,
        targets=len(rows),
        seeds=seeds,
        rounds=simulation.progress.round_index,
        **scores,
        by_seed=own,
        mean_image_mse=_mean_image_mse(simulation, rows),
        training=[result.training for result in results],
        target_clients=_clients_of(simulation.parts.sources[0], rows),
    )


def _clients_of(partition: Partition, rows: torch.Tensor) -> int:
    """Return the number of clients that hold the images at these rows ``[n]``."""
    owners = np.repeat(np.arange(len(partition)), partition.sizes)
    return len(np.unique(owners[np.isin(partition.indices, rows)]))


def _table(record: AttackRecord) -> Table:
    """Return a table of the scores of attacks."""
    following = record.target_clients - 1
    also = f" and the next {following:,}" if following > 1 else " and the next one" if following else ""
    whom = f"client {record.target_client}{also}"
    table = Table(title=f"{record.decoder} against {whom}, {count_text(record.targets, 'image')}")
    for column in ("", "mean", "std"):
        table.add_column(column, justify="right")
    for score, unit in (("mse", ""), ("ssim", ""), ("psnr", " dB")):
        measured = getattr(record, score)
        parts = (measured.mean, measured.std) if measured else (None, None)
        table.add_row(score.upper(), *(number(value, ".4f", unit) for value in parts))
    table.caption = f"MSE of the mean image: {record.mean_image_mse:.4f}"
    return table


def _mean_image_mse(simulation: Simulation, rows: torch.Tensor) -> float:
    """Return the mean squared error of an attacker who only knows the mean of the target images.

    Args:
        rows: rows of the target images, int64 ``[n]``.
    """
    originals = pixels(simulation.dataset.train, rows)
    return (originals - originals.mean(dim=0)).square().mean().item()


def _sheet(originals: torch.Tensor, result: Result, name: str) -> Figure:
    """Draw originals above their reconstructions.

    Args:
        originals: images ``[n, 3, H, H]`` in [0, 1].
        result: the attack, whose first `n` reconstructions are shown.
        name: name of the decoder.
    """
    figure, axes = plt.subplots(
        2, len(originals), figsize=(0.85 * len(originals) + 0.6, 2.1), squeeze=False, layout="constrained"
    )
    made = result.reconstructions[: len(originals)]
    for line, title, row in zip(axes, ("original", "made of it"), (originals, made), strict=True):
        for axis, image in zip(line, row, strict=True):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=8)
    figure.suptitle(f"{name}: SSIM {result.ssim:.3f}, MSE {result.mse:.4f}", fontsize=9)
    return figure


def _curves(results: Sequence[Result], seeds: Sequence[int]) -> Figure:
    """Draw the decoder's mean squared error by epoch, on the images it is trained on and on those held out."""
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for result, seed in zip(results, seeds, strict=True):
        epochs = range(1, len(result.training.train) + 1)
        mark = "." if len(epochs) < _MARKED else ""
        (line,) = axis.plot(epochs, result.training.train, marker=mark, label=f"seed {seed}, trained on")
        how = {"color": line.get_color(), "marker": mark, "label": f"seed {seed}, held out"}
        axis.plot(epochs, result.training.held_out, "--", **how)
    axis.set(xlabel="epoch", ylabel="mean squared error", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
