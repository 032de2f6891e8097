"""Carries out the attacks that ``attack.py`` is asked for: once for each seed, scored, printed and drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from simsfl.attacks import (
    SIMILARITIES,
    TARGETS,
    Result,
    attackers_rows,
    others,
    pixels,
    some,
    spread,
    targets,
    with_published_contrast,
)
from simsfl.attacks.hijacking import hijack
from simsfl.attacks.reconstruction import attack
from simsfl.cli.attack import figures
from simsfl.cli.attack.flags import Asked, check_together, parser
from simsfl.cli.attack.victims import Victim, of_run, of_weights
from simsfl.data import Images, resized
from simsfl.data.load import load_dataset
from simsfl.data.npz import read_images
from simsfl.data.partition import Partition
from simsfl.engine.precision import arithmetic
from simsfl.runs.records import AttackRecord, Scores, to_json
from simsfl.system.console import Output
from simsfl.system.errors import is_foreseen
from simsfl.system.memory import is_out_of_memory
from simsfl.system.messages import blaming, count_text
from simsfl.system.progress import watched
from simsfl.ui.arguments import fail
from simsfl.ui.text import number

_SHOWN = 12
"""Most images on the sheet."""


def main(argv: Sequence[str] | None = None) -> int:
    """Attack a run or weights, print and write the results; return the exit code."""
    try:
        arguments = parser().parse(argv)
        check_together(arguments)
        asked = Asked.of(arguments)
        victim = of_run(arguments) if arguments.weights is None else of_weights(arguments)
        with arithmetic(victim.config.precision):
            _carry_out(asked, victim)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not is_foreseen(error):
            raise
        lacks = f"memory: this attack does not fit ({error}); allowed: a smaller --attacker-data"
        return fail(ValueError(lacks) if is_out_of_memory(error) else error)
    return 0


def _carry_out(asked: Asked, victim: Victim) -> None:
    """Attack once for each seed; print the scores, and write them with the sheet and the curves.

    Args:
        asked: the attack.
        victim: what is attacked.

    Raises:
        ValueError: the target client does not exist, or the images cannot be had.
    """
    title = asked.title
    files = {
        kind: f"{victim.place}{title}{end}"
        for kind, end in (("record", ".json"), ("sheet", ".png"), ("curves", "-curves.png"))
    }
    victim.out.check(*files.values())
    wanted, rows = _targets(asked, victim)
    own = _own_images(asked, victim, wanted, rows) if asked.decoder else [None] * len(asked.seeds)
    shown = with_published_contrast(wanted) if asked.contrast else wanted
    console, of = Output(), victim.weights or victim.out.path
    console.say(
        f"reconstructing {count_text(len(wanted), 'image')} of {of} by {title}, {count_text(len(asked.seeds), 'seed')}"
    )
    results = [_result(asked, victim, shown, have, seed) for have, seed in zip(own, asked.seeds, strict=True)]
    record = _record(asked, victim, shown, rows, results)
    victim.out.write_json(files["record"], to_json(record))
    drawn = {"sheet": figures.sheet(pixels(shown)[:_SHOWN].cpu(), results[0], title)}
    if asked.decoder:
        drawn["curves"] = figures.curves(results, asked.seeds, hijacked=asked.kind == "fsha")
    for kind, figure in drawn.items():
        with victim.out.replacing(files[kind]) as file:
            figure.savefig(file)
        plt.close(figure)
    console.print(_table(title, record))
    console.say(f"wrote {', '.join(str(victim.out.path / files[kind]) for kind in ('record', *drawn))}")


def _targets(asked: Asked, victim: Victim) -> tuple[Images, Tensor]:
    """Return the images to reconstruct, and the rows int64 ``[n]`` of those that are training images.

    Raises:
        ValueError: the target client does not exist, or the file of images cannot be read.
    """
    data, none = victim.dataset, torch.zeros(0, dtype=torch.long)
    if asked.images is not None:
        try:
            given = read_images(asked.images)[:TARGETS]
        except ValueError as error:
            raise ValueError(f"target_images: {str(error).removeprefix('dataset: ')}") from error
        scaled = resized([given], data.image_size).to(data.train.mean.device)
        return Images(scaled, data.train.mean, data.train.std), none
    if victim.simulation is None:
        return some(data.test, torch.arange(min(TARGETS, len(data.test)))), none
    if not 0 <= asked.client < victim.config.clients:
        raise ValueError(f"target_client: {asked.client} is no client; allowed: 0 to {victim.config.clients - 1}")
    rows = targets(victim.simulation.parts.sources[0], asked.client)
    return some(data.train, rows), rows


def _own_images(asked: Asked, victim: Victim, wanted: Images, rows: Tensor) -> Iterator[Images]:
    """Yield the images that the attacker has, normalised as the client's, for each seed.

    Args:
        asked: the attack.
        victim: what is attacked.
        wanted: the images that are reconstructed, which it never has.
        rows: rows of those that are training images, int64 ``[n]``.

    Raises:
        ValueError: the attacker's data set cannot be had, or is the one that is attacked, or it has no other images.
    """
    config, mine = victim.config, victim.dataset
    images, count = mine.train, len(mine.train) - mine.auxiliary
    if asked.dataset is not None:
        where = {"data_dir": config.data_dir, "image_size": config.image_size, "seed": config.seed}
        with blaming("attacker_dataset", for_="dataset"):
            other = load_dataset(asked.dataset, **where)
        if other.checksum == mine.checksum:
            whose = "the run's own" if victim.simulation else "the data set itself"
            raise ValueError(f"attacker_dataset: {asked.dataset} is {whose}; allowed: another, or without it")
        images, count, rows = Images(other.train.pixels, mine.train.mean, mine.train.std), len(other.train), rows[:0]
    for seed in asked.seeds:
        own = others(some(images, attackers_rows(count, asked.share, rows, seed)), wanted)
        if not len(own):
            raise ValueError("attacker_data: all of these images are to be reconstructed; allowed: more, or others")
        yield own


def _result(asked: Asked, victim: Victim, wanted: Images, own: Images | None, seed: int) -> Result:
    """Carry out an attack.

    Args:
        asked: the attack.
        victim: what is attacked.
        wanted: the images that are reconstructed.
        own: the images that the attacker has.
        seed: seed of the attack.
    """

    def watch(title: str, items: Any) -> Any:
        return watched(items, f"{title}, seed {seed}")

    how = {"seed": seed, "watch": watch}
    if asked.kind == "fsha":
        rounds = asked.rounds or victim.config.rounds
        return hijack(victim.simulation, wanted, own, spec=asked.decoder, rounds=rounds, **how)
    if victim.simulation:
        how["protect"] = victim.simulation.parts.hyper.defence.protect
    return attack(victim.client, wanted, own, decoder=asked.decoder, epochs=asked.epochs, **how)


def _record(asked: Asked, victim: Victim, wanted: Images, rows: Tensor, results: list[Result]) -> AttackRecord:
    """Return what is written about the attacks.

    Args:
        asked: the attack.
        victim: what is attacked.
        wanted: the images that are reconstructed.
        rows: rows of those that are training images, int64 ``[n]``.
        results: result for each of the seeds.
    """
    own = {
        score: [value if math.isfinite(value := getattr(result, score)) else None for result in results]
        for score in ("mse", "ssim", "ssim_mirrored", "psnr")
    }
    scores = {score: None if None in values else Scores(**spread(values)) for score, values in own.items()}
    trained = None
    if simulation := victim.simulation:
        hijacked = asked.kind == "fsha"
        trained = asked.rounds or victim.config.rounds if hijacked else simulation.progress.round_index
    network = victim.config.network()
    originals = pixels(wanted)
    return AttackRecord(
        attack=asked.kind,
        decoder=asked.name,
        attacker_data=asked.share if asked.decoder else None,
        attacker_dataset=asked.dataset,
        epochs=asked.epochs if asked.kind == "decoder" else None,
        target_client=asked.client if len(rows) else None,
        targets=len(wanted),
        seeds=asked.seeds,
        rounds=trained,
        **scores,
        ssim_borders="zeros",
        by_seed=own,
        mean_image_mse=(originals - originals.mean(dim=0)).square().mean().item(),
        training=[result.training for result in results],
        target_clients=_clients_of(victim.simulation.parts.sources[0], rows) if len(rows) else None,
        published_contrast=asked.contrast,
        target_images=None if asked.images is None else str(asked.images),
        weights=victim.weights,
        network=network | network.pop("options", {}) if victim.weights else None,
        dataset=victim.dataset.name if victim.weights else None,
    )


def _clients_of(partition: Partition, rows: Tensor) -> int:
    """Return the number of clients that hold the images at these rows ``[n]``."""
    owners = np.repeat(np.arange(len(partition)), partition.sizes)
    return len(np.unique(owners[np.isin(partition.indices, rows)]))


def _table(title: str, record: AttackRecord) -> Table:
    """Return a table of the scores of attacks that have this title."""
    table = Table(title=f"{title} against {_whom(record)}")
    for column in ("", "mean", "std"):
        table.add_column(column, justify="right")
    similarities = [(SIMILARITIES[borders], own, "") for borders, own in record.similarities.items()]
    for name, measured, unit in (("MSE", record.mse, ""), *similarities, ("PSNR", record.psnr, " dB")):
        parts = (measured.mean, measured.std) if measured else (None, None)
        table.add_row(name, *(number(value, ".4f", unit) for value in parts))
    table.caption = f"MSE of the mean image: {record.mean_image_mse:.4f}" + record.published_contrast * (
        "; images at four fifths of their contrast, as in the published evaluation"
    )
    return table


def _whom(record: AttackRecord) -> str:
    """Return whom an attack was against, and how many images of what it has reconstructed, as text."""
    weights = f"{Path(record.weights).stem}, " if record.weights else ""
    if record.target_images:
        return f"{weights}{count_text(record.targets, 'image')} of {Path(record.target_images).name}"
    if record.weights:
        return f"{weights}{count_text(record.targets, 'test image')} of {Path(record.dataset).stem}"
    following = record.target_clients - 1
    also = f" and the next {following:,}" if following > 1 else " and the next one" if following else ""
    return f"client {record.target_client}{also}, {count_text(record.targets, 'image')}"
