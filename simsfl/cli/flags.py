"""The config's fields as command-line flags."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from simsfl.config import RunConfig
from simsfl.ui.arguments import value_of

GROUPS = {
    "clients": "clients and rounds",
    "data": "data and views",
    "model": "model",
    "contrast": "contrastive loss and queue",
    "privacy": "privacy",
    "optimiser": "optimiser",
    "evaluation": "evaluation",
    "run": "machine and checkpoints",
}

CONVERTERS = {"int": value_of(int, "a whole number"), "float": value_of(float, "a number"), "str": str}


def add_config_flags(
    parser: argparse.ArgumentParser, *, without: Collection[str] = (), beside: Mapping[str, RunConfig] | None = None
) -> None:
    """One flag per field of `RunConfig`, but those `without`, under the heading of its group; absent unless given.

    Help shows the field's default, and `beside` it what it is in presets by name, where that is something else.
    """
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for spec in fields(RunConfig):
        group = spec.metadata["group"]
        if group not in groups or spec.name in without:
            continue
        kind = spec.type.partition(" | ")[0]
        defaults = {} if spec.default is None else {"default": spec.default}
        for name, config in (beside or {}).items():
            if getattr(config, spec.name) != spec.default:
                defaults[name] = getattr(config, spec.name)
        note = f" ({', '.join(f'{name}: {value}' for name, value in defaults.items())})" if defaults else ""
        text = (spec.metadata["help"] + note).replace("%", "%%")
        options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if kind == "bool":
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = CONVERTERS[kind]
            choices = spec.metadata["choices"]
            options["metavar"] = "{" + ",".join(choices) + "}" if choices else kind.upper()
        groups[group].add_argument(f"--{spec.name.replace('_', '-')}", **options)


def config_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """The config fields that were given as flags."""
    names = {spec.name for spec in fields(RunConfig)}
    return {name: value for name, value in vars(arguments).items() if name in names and name != "preset"}
