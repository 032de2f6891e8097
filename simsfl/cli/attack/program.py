"""Reconstruct a client's images from what it sends."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.table import Table
from torch import Tensor

from simsfl import Simulation
from simsfl.attacks import Result, attackers_rows, pixels, some, spread, targets
from simsfl.attacks.hijacking import hijack
from simsfl.attacks.reconstruction import attack
from simsfl.cli.attack import figures
from simsfl.cli.flags import add_plugin_flag
from simsfl.config.constraints import ATTACK, HIJACK, check
from simsfl.config.notation import Decoder
from simsfl.data import Images
from simsfl.data.load import load_dataset
from simsfl.data.partition import Partition
from simsfl.engine.precision import arithmetic
from simsfl.rounds import evaluating
from simsfl.rounds.saving import PLACES
from simsfl.runs.records import AttackRecord, Scores, to_json
from simsfl.system.console import Output
from simsfl.system.memory import is_out_of_memory
from simsfl.system.messages import count_text
from simsfl.system.outputs import Outputs
from simsfl.system.progress import watched
from simsfl.ui.arguments import Parser, fail, one_of, path, seeds_of, value_of, whole_number
from simsfl.ui.dashboard import number

log = logging.getLogger(__name__)
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


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument("run", type=path, metavar="RUN_DIR", help="run directory (method mocosfl)")
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
        asked = _Attack.of(arguments)
        places = {name: getattr(arguments, name) for name in PLACES if getattr(arguments, name)}
        simulation = Simulation.load(arguments.run, device=arguments.device, places=places)
        for problem in simulation.damaged:
            log.warning("%s", problem)
        with arithmetic(simulation.config.precision):
            _carry_out(asked, simulation, Outputs(arguments.run, "run"))
    except (ValueError, OSError, ArithmeticError) as error:
        return fail(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail(ValueError(f"memory: this attack does not fit ({error}); allowed: a smaller --attacker-data"))
    except KeyboardInterrupt:
        return 130
    return 0


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

    @classmethod
    def of(cls, arguments: Any) -> _Attack:
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
            name and Decoder.parse(name),
            name,
            share,
            arguments.attacker_dataset,
            seeds_of(arguments.attack_seeds, "attack_seeds"),
            arguments.attack_epochs or _EPOCHS,
            arguments.attack_rounds,
            arguments.target_client,
        )

    @property
    def title(self) -> str:
        """Return the name of the attack, which its files have as well."""
        own = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(self.dataset).stem) if self.dataset else None
        return "-".join(part for part in (self.kind if self.kind != "decoder" else None, self.name, own) if part)


def _carry_out(asked: _Attack, simulation: Simulation, out: Outputs) -> None:
    """Attack once for each seed; print the scores, and write them with the sheet and the curves into the run directory.

    Args:
        asked: the attack.
        simulation: the run.
        out: the run directory.

    Raises:
        ValueError: the run cannot be attacked in this way, or the target client does not exist.
    """
    config = simulation.config
    check(config, ATTACK + (HIJACK if asked.kind == "fsha" else ()))
    if not 0 <= asked.client < config.clients:
        raise ValueError(f"target_client: {asked.client} is no client; allowed: 0 to {config.clients - 1}")
    rows = targets(simulation.parts.sources[0], asked.client)
    wanted = some(simulation.dataset.train, rows)
    files = {
        kind: f"attacks/{asked.title}{end}"
        for kind, end in (("record", ".json"), ("sheet", ".png"), ("curves", "-curves.png"))
    }
    out.check(*files.values())
    own = _own_images(asked, simulation, rows) if asked.decoder else [None] * len(asked.seeds)
    results = [_result(asked, simulation, wanted, have, seed) for have, seed in zip(own, asked.seeds, strict=True)]
    record = _record(asked, simulation, wanted, rows, results)
    out.write_json(files["record"], to_json(record))
    drawn = {"sheet": figures.sheet(pixels(wanted)[:_SHOWN].cpu(), results[0], asked.title)}
    if asked.decoder:
        drawn["curves"] = figures.curves(results, asked.seeds, hijacked=asked.kind == "fsha")
    for kind, figure in drawn.items():
        with out.replacing(files[kind]) as file:
            figure.savefig(file)
        plt.close(figure)
    console = Output()
    console.print(_table(asked.title, record))
    console.say(f"wrote {', '.join(str(out.path / files[kind]) for kind in drawn)}")


def _own_images(asked: _Attack, simulation: Simulation, rows: Tensor) -> Iterator[Images]:
    """Yield the images that the attacker has, normalised as the run's, for each seed.

    Args:
        asked: the attack.
        simulation: the run.
        rows: rows of the target images, int64 ``[n]``, which it never has.

    Raises:
        ValueError: the attacker's data set cannot be had, or is the run's own.
    """
    config, mine = simulation.config, simulation.dataset
    images, count = mine.train, len(mine.train) - mine.auxiliary
    if asked.dataset is not None:
        where = {"data_dir": config.data_dir, "image_size": config.image_size, "seed": config.seed}
        try:
            other = load_dataset(asked.dataset, **where)
        except ValueError as error:
            raise ValueError(str(error).replace("dataset:", "attacker_dataset:", 1)) from error
        if other.checksum == mine.checksum:
            raise ValueError(f"attacker_dataset: {asked.dataset} is the run's own; allowed: another, or without it")
        images, count, rows = Images(other.train.pixels, mine.train.mean, mine.train.std), len(other.train), rows[:0]
    for seed in asked.seeds:
        yield some(images, attackers_rows(count, asked.share, rows, seed))


def _result(asked: _Attack, simulation: Simulation, wanted: Images, own: Images | None, seed: int) -> Result:
    """Carry out an attack.

    Args:
        asked: the attack.
        simulation: the run.
        wanted: the images that are reconstructed.
        own: the images that the attacker has.
        seed: seed of the attack.
    """

    def watch(title: str, items: Any) -> Any:
        return watched(items, f"{title}, seed {seed}")

    how = {"seed": seed, "watch": watch}
    if asked.kind == "fsha":
        rounds = asked.rounds or simulation.config.rounds
        return hijack(simulation, wanted, own, spec=asked.decoder, rounds=rounds, **how)
    protect, client = simulation.parts.hyper.defence.protect, evaluating.client(simulation.parts)
    return attack(client, wanted, own, decoder=asked.decoder, epochs=asked.epochs, protect=protect, **how)


def _record(
    asked: _Attack, simulation: Simulation, wanted: Images, rows: Tensor, results: list[Result]
) -> AttackRecord:
    """Return what is written about the attacks.

    Args:
        asked: the attack.
        simulation: the run.
        wanted: the images that are reconstructed.
        rows: their rows, int64 ``[n]``.
        results: result for each of the seeds.
    """
    own = {
        score: [value if math.isfinite(value := getattr(result, score)) else None for result in results]
        for score in ("mse", "ssim", "psnr")
    }
    scores = {score: None if None in values else Scores(**spread(values)) for score, values in own.items()}
    trained = asked.rounds or simulation.config.rounds if asked.kind == "fsha" else simulation.progress.round_index
    originals = pixels(wanted)
    return AttackRecord(
        attack=asked.kind,
        decoder=asked.name,
        attacker_data=asked.share if asked.decoder else None,
        attacker_dataset=asked.dataset,
        epochs=asked.epochs if asked.kind == "decoder" else None,
        target_client=asked.client,
        targets=len(rows),
        seeds=asked.seeds,
        rounds=trained,
        **scores,
        by_seed=own,
        mean_image_mse=(originals - originals.mean(dim=0)).square().mean().item(),
        training=[result.training for result in results],
        target_clients=_clients_of(simulation.parts.sources[0], rows),
    )


def _clients_of(partition: Partition, rows: Tensor) -> int:
    """Return the number of clients that hold the images at these rows ``[n]``."""
    owners = np.repeat(np.arange(len(partition)), partition.sizes)
    return len(np.unique(owners[np.isin(partition.indices, rows)]))


def _table(title: str, record: AttackRecord) -> Table:
    """Return a table of the scores of attacks that have this title."""
    following = record.target_clients - 1
    also = f" and the next {following:,}" if following > 1 else " and the next one" if following else ""
    whom = f"client {record.target_client}{also}"
    table = Table(title=f"{title} against {whom}, {count_text(record.targets, 'image')}")
    for column in ("", "mean", "std"):
        table.add_column(column, justify="right")
    for score, unit in (("mse", ""), ("ssim", ""), ("psnr", " dB")):
        measured = getattr(record, score)
        parts = (measured.mean, measured.std) if measured else (None, None)
        table.add_row(score.upper(), *(number(value, ".4f", unit) for value in parts))
    table.caption = f"MSE of the mean image: {record.mean_image_mse:.4f}"
    return table
