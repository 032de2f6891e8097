"""The list of what flags may name, for ``simsfl run --list``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from simsfl.config import RunConfig, plugins
from simsfl.config.catalogue import DATASETS, DOORS, TRACKERS
from simsfl.config.presets import PRESETS, automatic
from simsfl.config.registry import code_of
from simsfl.config.values import allowed_text, field_type, options_in
from simsfl.models import layer_count
from simsfl.system.console import Output


def print_choices(console: Output) -> None:
    """Print the names that flags accept, with options and their defaults, and for plugins' where they come from."""

    def settings(config: RunConfig) -> str:
        """Return the fields that differ from the defaults, as text."""
        changed = config.changed_from(RunConfig())
        return ", ".join(f"{name} {value}" for name, value in changed.items() if name != "preset")

    sections: dict[str, dict[str, Any]] = {
        "presets": {"auto": f"the one that suits this machine: {automatic()[0]}"}
        | {name: Text.assemble(f"{preset.__doc__}\n", (settings(preset()), "dim")) for name, preset in PRESETS.items()},
        "architectures": _listed("arch", _cut_layers),
        "datasets": _listed("dataset", lambda name: DATASETS[name].about)
        | {
            "FILE.npz": "train_x train_y test_x test_y: uint8 (n, height, width, 3), integer labels; or MedMNIST's. "
            "unlabelled_x: images for clients; train_client: whose they are",
            "DIR": "ImageFolder layout: train/CLASS/* and test/CLASS/* (or val/); unlabelled/: images for clients",
            "hf:NAME": "of the Hugging Face hub, or hf:DIRECTORY; hf:NAME:SUBSET?label=COLUMN&test=SPLIT chooses "
            "(simsfl[datasets])",
        },
    }
    for door in [door for door in RunConfig().chosen if door not in ("arch", "dataset")]:
        sections[f"{door}s"] = _listed(door)
    sections["trackers"] = {name: _summary_of(kind.code.load()) for name, kind in TRACKERS.items()}
    table = Table.grid(padding=(0, 2))
    for title, names in sections.items():
        if not names:  # such as callbacks, which plugins alone have
            continue
        table.add_row(Text(title, "bold"))
        for name, text in names.items():
            table.add_row(f"  {name}", text)
    console.print(table)


def _listed(door: str, summary: Callable[[str], str] | None = None) -> dict[str, Group]:
    """Return what is said of each name at a door: a summary, which plugin it comes from, and its options.

    Args:
        door: one of `DOORS`.
        summary: function of a name that returns its summary; None for the first line of the docstring.
    """
    rows = {}
    for name, known in DOORS[door].items():
        code = code_of(known)
        kind = code.load()
        plugin = plugins.name_of(code)
        lines: list[RenderableType] = [Text(summary(name) if summary else _summary_of(kind))]
        if plugin:
            lines.append(Text(f"from the plugin {plugin}", "dim"))
        for spec in options_in(kind):
            lines += [
                Text(f"--{door}.{spec.name} {_value_text(spec)}"),
                Padding(_about(spec), (0, 0, 0, 2), expand=False),
            ]
        rows[name] = Group(*lines)
    return rows


def _cut_layers(arch: str) -> str:
    """Return where an architecture can be cut, or why a plugin's cannot be made for images of usual size."""
    try:
        return f"cut layer 1 to {layer_count(arch)}"
    except Exception as error:  # whatever somebody's code raises
        return f"cannot be made for images of 32x32: {' '.join(str(error).split())}"


def _value_text(spec: Field) -> str:
    """Return the default of an option as a flag takes it."""
    return str(spec.default).lower() if isinstance(spec.default, bool | None) else str(spec.default)


def _about(spec: Field) -> Text:
    """Return the help text of an option, and what is allowed; by its type where nothing else limits it."""
    kinds = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
    allowed = allowed_text(spec) or ("a path" if spec.metadata.get("file") else kinds[field_type(spec)])
    return Text(f"{spec.metadata.get('help', '')} ({allowed})".strip(), "dim")


def _summary_of(thing: Any) -> str:
    """Return the first line of a docstring; empty where there is none."""
    return (thing.__doc__ or "").strip().split("\n")[0]
