"""The config's fields as command-line flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, fields, replace
from typing import Any

from simsfl.config import RunConfig, plugins
from simsfl.config.catalogue import DOORS
from simsfl.config.presets import named
from simsfl.config.registry import code_of
from simsfl.system.programs import called
from simsfl.ui.arguments import Early, Parser, source, truth, value_of

_GROUPS = {
    "clients": "clients and rounds",
    "data": "data and views",
    "model": "model",
    "contrast": "contrastive loss and queue",
    "privacy": "privacy",
    "optimiser": "optimiser",
    "evaluation": "evaluation",
    "run": "machine and checkpoints",
}
"""Headings in the help of flags, by the group of a config field."""
_CONVERTERS = {
    "int": value_of(int, "a whole number"),
    "float": value_of(float, "a number"),
    "str": str,
    "bool": truth,
}
"""Converters of a flag's text, by the type of a config field."""
_ALSO = ("FILE.npz", "DIR", "hf:NAME")
"""What ``--dataset`` takes besides names."""


class _Load(Early):
    """Loads a plugin before all other flags are read, so that ``--help`` and ``--list`` show what it has."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        plugins.load(values)


class _Names:
    """The names that a flag takes, with their plugins, as text that is made when help is printed.

    Args:
        known: the names.
        door: what is known of them, where plugins may add some.
        also: what else the flag takes.
    """

    def __init__(self, known: Collection[str], door: Mapping[str, Any] | None, also: Collection[str] = ()):
        self.known, self.door, self.also = known, door, also

    def __str__(self) -> str:
        """Return the names in braces, or NAME where there are none."""
        names = [*(name + self._plugin(name) for name in self.known), *self.also]
        return "{" + ",".join(names) + "}" if names else "NAME"

    def _plugin(self, name: str) -> str:
        """Return the plugin that a name comes from, in brackets; empty where it comes from none."""
        plugin = plugins.name_of(code_of(self.door[name])) if self.door else None
        return f" ({plugin})" if plugin else ""


def add_plugin_flag(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--plugin``, and load the plugins that installed packages and the environment name.

    Raises:
        ValueError: one of these cannot be imported.
    """
    plugins.load_all()
    parser.add_argument(
        "--plugin",
        action=_Load,
        default=argparse.SUPPRESS,
        metavar="MODULE_OR_FILE",
        help="load a module, or a Python file, that registers what flags may name; may be given several times",
    )


def add_config_flags(
    parser: Parser,
    *,
    preset: str | list[str],
    group: argparse._ArgumentGroup | None = None,
    without: Collection[str] = (),
    beside: Mapping[str, RunConfig] | None = None,
    converted: Callable[[Callable[[str], Any]], Callable[[str], Any]] | None = None,
) -> None:
    """Add ``--preset``, and a flag for each field of `RunConfig` under the heading of its group.

    A field's flag that is not given leaves no attribute in the parsed arguments.

    Args:
        parser: parser that the flags are added to.
        preset: default of ``--preset``, a list of names where flags take several values.
        group: group of flags that ``--preset`` is added to; None for none.
        without: fields that get no flag.
        beside: presets by name; the help of a field shows their values beside its default, where they differ.
        converted: function that makes a converter of texts of several values from the converter of one; None where
            a flag takes one value.
    """
    shown = preset if isinstance(preset, str) else ",".join(preset)
    text = f"auto, or one of those that `{called('run')} --list` prints; flags override its fields (default: {shown})"
    (group or parser).add_argument("--preset", type=converted(str) if converted else str, default=preset, help=text)
    add_plugin_flag(group or parser)
    parser.dotted = RunConfig().chosen
    groups = {name: parser.add_argument_group(title) for name, title in _GROUPS.items()}
    for spec in fields(RunConfig):
        heading = spec.metadata["group"]
        if heading in groups and spec.name not in without:
            _add_field_flag(groups[heading], spec, beside or {}, converted)


def add_field_flags(group: argparse._ArgumentGroup, names: Collection[str]) -> None:
    """Add the flags of the fields of `RunConfig` called `names`, as `add_config_flags` does."""
    for spec in fields(RunConfig):
        if spec.name in names:
            _add_field_flag(group, spec, {})


def _add_field_flag(
    group: argparse._ArgumentGroup,
    spec: Field,
    beside: Mapping[str, RunConfig],
    converted: Callable[[Callable], Callable] | None = None,
) -> None:
    """Add the flag of a field; see `add_config_flags`."""
    kind = spec.type.partition(" | ")[0]
    defaults = {} if spec.default is None else {"default": spec.default}
    for name, config in beside.items():
        if getattr(config, spec.name) != spec.default:
            defaults[name] = getattr(config, spec.name)
    note = f" ({', '.join(f'{name}: {value}' for name, value in defaults.items())})" if defaults else ""
    text = (spec.metadata["help"] + note).replace("%", "%%")
    options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
    if kind == "bool" and not converted:
        options["action"] = argparse.BooleanOptionalAction
    else:
        convert = source if spec.metadata["path"] else _CONVERTERS[kind]
        options["type"] = convert
        if converted:
            options["type"] = (lambda text: [convert(text)]) if spec.metadata["several"] else converted(convert)
        door = DOORS.get(spec.name)
        choices = door if spec.metadata["choices"] is None else spec.metadata["choices"]
        also = _ALSO if spec.name == "dataset" else ()
        options["metavar"] = kind.upper() if choices is None else _Names(choices, door, also)
    if kind == "bool" and converted:
        options |= {"nargs": "?", "const": "true", "metavar": "BOOL"}
        off = {"dest": spec.name, "action": "store_const", "const": [False], "default": argparse.SUPPRESS}
        group.add_argument(f"--no-{spec.name.replace('_', '-')}", help=argparse.SUPPRESS, **off)
    group.add_argument(f"--{spec.name.replace('_', '-')}", **options)


def config_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the config fields that were given as flags, by name."""
    names = {spec.name for spec in fields(RunConfig)}
    return {name: value for name, value in vars(arguments).items() if name in names - {"preset", "options"}}


def asked_config(arguments: argparse.Namespace, start: RunConfig | None = None) -> RunConfig:
    """Return the config with the fields and options that were given as flags.

    Args:
        arguments: the parsed flags.
        start: the config that they change; None for that of the preset.

    Raises:
        ValueError: there is no such preset, or a flag cannot work, or has no effect beside the others.
    """
    values = config_values(arguments)
    if start:
        config = replace(start, **values)
    else:
        config = named(arguments.preset, values.get("device", "auto"))[0].with_values(values)
    config = config.with_options(arguments.options)
    config.check_effect(values)
    return config
