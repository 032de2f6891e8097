"""Reconstruct a client's images from what it sends: of a run, or of weights alone."""

from __future__ import annotations

import math
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from simsfl.cli.attack.victims import NETWORK, Victim, of_run, of_weights
from simsfl.cli.flags import add_field_flags, add_plugin_flag
from simsfl.config.notation import Decoder
from simsfl.data import Images, resized
from simsfl.data.load import load_dataset
from simsfl.data.npz import read_images
from simsfl.data.partition import Partition
from simsfl.engine.precision import arithmetic
from simsfl.rounds.saving import PLACES
from simsfl.runs.records import AttackRecord, Scores, to_json
from simsfl.system.console import Output
from simsfl.system.errors import is_foreseen
from simsfl.system.memory import is_out_of_memory
from simsfl.system.messages import blaming, count_text
from simsfl.system.progress import watched
from simsfl.ui.arguments import Parser, fail, one_of, path, seeds_of, source, value_of, whole_number
from simsfl.ui.text import number

_FLAGS = {
    "decoder": ("decoder", "attacker_data", "attacker_dataset", "attack_epochs"),
    "descent": (),
    "fsha": ("decoder", "attacker_data", "attacker_dataset", "attack_rounds"),
}
"""The attacks, and the flags that have an effect with each."""
_DECODER, _SHARE, _EPOCHS = "res_normN4C64", 0.01, 50
"""Defaults of flags; they are None where the user has not set them."""
_SHOWN = 12
"""Most images on the sheet."""
_OF_RUNS, _OF_WEIGHTS = ("target_client", "aux_dataset"), (*NETWORK, "out")
"""Flags that have an effect with a run alone, and those that have one with weights alone."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument("run", type=path, nargs="?", metavar="RUN_DIR", help="run directory (method mocosfl)")
    result.add_argument(
        "--attack",
        type=one_of(list(_FLAGS)),
        metavar="{" + ",".join(_FLAGS) + "}",
        default="decoder",
        help="decoder trains a decoder on images of the attacker; descent optimises the images themselves, without "
        "images of the attacker; fsha trains the clients anew with a server that leads them to send what its decoder "
        "can read (default: decoder)",
    )
    result.add_argument(
        "--decoder",
        metavar="NAME",
        help=f"custom, conv_normN{{blocks}}C{{channels}} or res_normN{{blocks}}C{{channels}} (default: {_DECODER})",
    )
    result.add_argument(
        "--attacker-data",
        type=value_of(float, "a number"),
        metavar="SHARE",
        help=f"share of the training images that the attacker has, drawn at random (default: {_SHARE})",
    )
    result.add_argument(
        "--attacker-dataset",
        metavar="NAME",
        help="data set that the attacker's images are of: a name, an .npz file or a directory (default: the run's own)",
    )
    result.add_argument("--attack-seeds", default="0", metavar="N,N", help="seeds; each gives one attack (default: 0)")
    result.add_argument(
        "--attack-epochs", type=whole_number, metavar="N", help=f"epochs of the decoder (default: {_EPOCHS})"
    )
    result.add_argument(
        "--attack-rounds", type=whole_number, metavar="N", help="rounds of fsha (default: those of the run)"
    )
    result.add_argument(
        "--target-client",
        type=value_of(int, "a whole number"),
        metavar="ID",
        help=f"client whose images are reconstructed, and those of the next ones up to {TARGETS} images (default: 0)",
    )
    result.add_argument(
        "--target-images",
        type=path,
        metavar="FILE.npz",
        help=f"reconstruct the first {TARGETS} images of this file instead: uint8 [n, height, width, 3], called images "
        "or train_x, or its only array",
    )
    result.add_argument(
        "--published-contrast",
        action="store_true",
        help="reconstruct images at four fifths of their contrast, as the published evaluation does, which takes about "
        "a third off the MSE",
    )
    add_plugin_flag(result)
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    for name in PLACES:
        text = "where the run's images lie now, if not where they lay when it began"
        also = {"dataset": "; with --weights the data set (default: auto)", "data_dir": "; with --weights as of run.py"}
        result.add_argument(f"--{name.replace('_', '-')}", metavar="STR", help=text + also.get(name, ""))
    weights = result.add_argument_group(
        "weights instead of a run",
        f"The targets are {TARGETS} test images. The network is that of the weights; a published file does not say it.",
    )
    weights.add_argument(
        "--weights",
        type=source,
        metavar="SOURCE",
        help="a file of weights, a run directory, the name of an expert that comes with simsfl, or a client's file of "
        "the published program (.tar)",
    )
    weights.add_argument("--out", type=path, metavar="DIR", help="directory of the results (default: attacks/SOURCE)")
    add_field_flags(weights, NETWORK)
    result.dotted = ("arch",)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Attack a run or weights, print and write the results; return the exit code."""
    try:
        arguments = parser().parse(argv)
        _check_together(arguments)
        asked = _Attack.of(arguments)
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


def _check_together(arguments: Namespace) -> None:
    """Raise a ValueError if flags are given that have no effect beside the others."""
    if (arguments.run is None) == (arguments.weights is None):
        problem = "is missing" if arguments.run is None else f"{arguments.run} is given beside --weights"
        raise ValueError(f"run: {problem}; allowed: the directory of a run, or --weights")
    without, others = (_OF_WEIGHTS, "--weights") if arguments.weights is None else (_OF_RUNS, "a run directory")
    given = [name for name in without if getattr(arguments, name, None) is not None]
    if arguments.weights is None:
        given += arguments.options
    if given:
        beside = "a run directory" if arguments.weights is None else "--weights"
        raise ValueError(f"{given[0]}: has no effect with {beside}; allowed with {others}")
    if arguments.weights is not None and arguments.attack == "fsha":
        raise ValueError("attack: fsha trains the clients of a run, and --weights has none; allowed: decoder, descent")
    if arguments.target_images is not None and arguments.target_client is not None:
        raise ValueError("target_client: has no effect with --target-images; allowed: one of the two")


@dataclass(frozen=True)
class _Attack:
    """What is asked for."""

    kind: str
    """Name of the attack, in `_FLAGS`."""
    decoder: Decoder | None
    """The network that is trained; None for descent."""
    name: str | None
    """Its name."""
    share: float
    """Share of the training images that the attacker has."""
    dataset: str | None
    """Data set that its images are of; None for the run's own."""
    seeds: list[int]
    epochs: int
    """Epochs of the decoder."""
    rounds: int | None
    """Rounds of FSHA; None for those of the run."""
    client: int
    """The target client."""
    images: Path | None
    """File of the target images; None for those of a client, or test images."""
    contrast: bool
    """Whether the contrast of the target images is lowered as in the published evaluation."""

    @classmethod
    def of(cls, arguments: Namespace) -> _Attack:
        """Return what the program's flags ask for; raise a ValueError if it is not possible."""
        for name in {name for flags in _FLAGS.values() for name in flags} - set(_FLAGS[arguments.attack]):
            if getattr(arguments, name) is not None:
                others = " or ".join(f"--attack {kind}" for kind, flags in _FLAGS.items() if name in flags)
                raise ValueError(f"{name}: has no effect with attack {arguments.attack}; allowed with {others}")
        share = _SHARE if arguments.attacker_data is None else arguments.attacker_data
        if not 0 < share <= 1:
            raise ValueError(f"attacker_data: {share:g} is no share; allowed: more than 0, up to 1")
        name = None if arguments.attack == "descent" else arguments.decoder or _DECODER
        return cls(
            arguments.attack,
            name and _decoder(name),
            name,
            share,
            arguments.attacker_dataset,
            seeds_of(arguments.attack_seeds, "attack_seeds"),
            arguments.attack_epochs or _EPOCHS,
            arguments.attack_rounds,
            arguments.target_client or 0,
            arguments.target_images,
            arguments.published_contrast,
        )

    @property
    def title(self) -> str:
        """Return the name of the attack, which its files have as well."""
        own, on = (path and re.sub(r"[^A-Za-z0-9_.]+", "-", Path(path).stem) for path in (self.dataset, self.images))
        kind, how = self.kind if self.kind != "decoder" else None, "published-contrast" if self.contrast else None
        return "-".join(part for part in (kind, self.name, own, on and f"on-{on}", how) if part)


def _decoder(name: str) -> Decoder:
    """Return the decoder of this name; raise a ValueError that says what there is, the attack without one as well."""
    try:
        return Decoder.parse(name)
    except ValueError as error:
        if name in _FLAGS:
            how = "has no decoder" if "decoder" not in _FLAGS[name] else f"has by default the decoder {_DECODER}"
            raise ValueError(f"decoder: {name} is an attack, which {how}; allowed: --attack {name}") from error
        raise ValueError(f"{error}; or --attack descent, which needs none") from error


def _carry_out(asked: _Attack, victim: Victim) -> None:
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


def _targets(asked: _Attack, victim: Victim) -> tuple[Images, Tensor]:
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


def _own_images(asked: _Attack, victim: Victim, wanted: Images, rows: Tensor) -> Iterator[Images]:
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


def _result(asked: _Attack, victim: Victim, wanted: Images, own: Images | None, seed: int) -> Result:
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


def _record(asked: _Attack, victim: Victim, wanted: Images, rows: Tensor, results: list[Result]) -> AttackRecord:
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
