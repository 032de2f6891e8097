"""Flags of ``attack.py``, and what they ask for."""

from __future__ import annotations

import re
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from simsfl.attacks import TARGETS
from simsfl.cli.attack.victims import NETWORK
from simsfl.cli.flags import add_field_flags, add_plugin_flag
from simsfl.config.notation import Decoder
from simsfl.rounds.saving import PLACES
from simsfl.ui.arguments import Parser, one_of, path, seeds_of, source, value_of, whole_number

_PURPOSE = "Reconstruct a client's images from what it sends: of a run, or of weights alone."
_FLAGS = {
    "decoder": ("decoder", "attacker_data", "attacker_dataset", "attack_epochs"),
    "descent": (),
    "fsha": ("decoder", "attacker_data", "attacker_dataset", "attack_rounds"),
}
"""The attacks, and the flags that have an effect with each."""
_DECODER, _SHARE, _EPOCHS = "res_normN4C64", 0.01, 50
"""Defaults of flags; they are None where the user has not set them."""
_OF_RUNS, _OF_WEIGHTS = ("target_client", "aux_dataset"), (*NETWORK, "out")
"""Flags that have an effect with a run alone, and those that have one with weights alone."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=_PURPOSE)
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


def check_together(arguments: Namespace) -> None:
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
class Asked:
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
    def of(cls, arguments: Namespace) -> Asked:
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
