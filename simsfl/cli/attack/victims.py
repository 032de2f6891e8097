"""What an attack is on: the clients of a run, or weights alone."""

from __future__ import annotations

import logging
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from simsfl import Simulation
from simsfl.config import RunConfig
from simsfl.config.constraints import ATTACK, HIJACK, check
from simsfl.config.presets import named
from simsfl.data import Dataset
from simsfl.data.load import load_dataset
from simsfl.rounds import evaluating
from simsfl.rounds.saving import PLACES
from simsfl.setup import assembly
from simsfl.setup.defaults import resolve
from simsfl.setup.published import load_published
from simsfl.setup.weights import Weights, experts, load_weights
from simsfl.system.messages import blaming
from simsfl.system.outputs import Outputs
from simsfl.system.reading import open_regular

log = logging.getLogger(__name__)
NETWORK = (
    *("arch", "width", "cut_layer", "bottleneck", "client_residual", "norm", "weight_standardisation", "image_size"),
)
"""Fields of the config that say of which network the weights of a client are."""


@dataclass(frozen=True)
class Victim:
    """What is attacked: the clients of a run, or the weights of one."""

    config: RunConfig
    """Config of the run, or with weights of their network, with every rule applied."""
    dataset: Dataset
    """The images, on the device."""
    client: nn.Module
    """The client model, frozen and in evaluation mode, on the device."""
    out: Outputs
    """Directory of the results."""
    place: str
    """Where they are in it: empty, or the name of a directory with a slash."""
    simulation: Simulation | None = None
    """The run; None for weights."""
    weights: str | None = None
    """Where the weights come from; None for a run."""


def of_run(arguments: Namespace) -> Victim:
    """Return the run that the flags name; raise a ValueError if it cannot be opened, or sends no smashed data."""
    places = {name: getattr(arguments, name) for name in PLACES if getattr(arguments, name)}
    simulation = Simulation.load(arguments.run, device=arguments.device, places=places)
    for problem in simulation.damaged:
        log.warning("%s", problem)
    check(simulation.config, ATTACK + (HIJACK if arguments.attack == "fsha" else ()))
    client = evaluating.client(simulation.parts)
    out = Outputs(arguments.run, "run")
    return Victim(simulation.config, simulation.dataset, client, out, "attacks/", simulation=simulation)


def of_weights(arguments: Namespace) -> Victim:
    """Return the client whose weights the flags name; raise a ValueError if they cannot be had, or do not fit."""
    weights = _weights(arguments)
    network = weights.config.network() | {"device": arguments.device, "precision": "fp32"}
    config = resolve(RunConfig(**network | {name: getattr(arguments, name) for name in _given(arguments)}))
    config = replace(config, data_dir=arguments.data_dir or config.data_dir)
    dataset = load_dataset(arguments.dataset or "auto", data_dir=config.data_dir, image_size=config.image_size)
    dataset, config = dataset.to(torch.device(config.device)), replace(config, image_size=dataset.image_size)
    model = assembly.network(config, weights=False)
    with blaming("weights", for_="init_client"):
        weights.initialise(model, config, server=False)
    client = model.client.module(model.client.initial, model.client.initial_statistics).to(config.device)
    out = Outputs(arguments.out or Path("attacks") / Path(arguments.weights).stem)
    return Victim(config, dataset, client.eval().requires_grad_(False), out, "", weights=arguments.weights)


def _weights(arguments: Namespace) -> Weights:
    """Return the weights that the flags name.

    Raises:
        ValueError: they cannot be had, or flags say otherwise of their network than they do.
    """
    fields = {name: getattr(arguments, name) for name in _given(arguments)}
    if _is_published(arguments.weights):
        config = resolve(replace(named("paper")[0], **fields).with_options(arguments.options))
        config.check_effect(fields)
        of_images, files = replace(config, image_size=config.image_size or 32), [Path(arguments.weights)]
        return replace(load_published(files, of_images, "weights", allowed=["client"]), config=config)
    with blaming("weights", for_="init_client"):
        weights = load_weights(arguments.weights)
    check(weights.config, ATTACK)
    own = resolve(replace(weights.config, device="cpu"))
    asked = replace(own, **fields).with_options(arguments.options)
    for name, value in asked.changed_from(own).items():
        if name != "image_size":
            theirs = getattr(own, name)
            raise ValueError(
                f"{name}: {value} is not what the network of {arguments.weights} has, {theirs}; allowed: without it"
            )
    return weights


def _given(arguments: Namespace) -> list[str]:
    """Return the names of the fields of the network that flags give."""
    return [name for name in NETWORK if hasattr(arguments, name)]


def _is_published(source: str) -> bool:
    """Return whether this is a file of another kind than files of weights, whose header is JSON behind its length."""
    file = Path(source)
    if source in experts() or not file.is_file():
        return False
    with open_regular(file) as opened:
        return opened.read(9)[8:] != b"{"
