"""The list of what flags may name, for ``simsfl run --list``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from simsfl.config import RunConfig, plugins
from simsfl.config.catalogue import DATASETS, DOORS
from simsfl.config.presets import PRESETS, automatic
from simsfl.config.registry import code_of
from simsfl.config.values import options_in
from simsfl.models import layer_count
from simsfl.system.console import Output


def print_choices(console: Output) -> None:
    """Print the names that flags accept, and for those from plugins where they come from."""

    def settings(config: RunConfig) -> str:
        """Return the fields that differ from the defaults, as text."""
        changed = config.changed_from(RunConfig())
        return ", ".join(f"{name} {value}" for name, value in changed.items() if name != "preset")

    sections: dict[str, dict[str, Any]] = {
        "presets": {"auto": f"the one that suits this machine: {automatic()[0]}"}
        | {name: Text.assemble(f"{preset.__doc__}\n", (settings(preset()), "dim")) for name, preset in PRESETS.items()},
        "architectures": _listed("arch", _of_architecture),
        "datasets": _listed("dataset", lambda name: DATASETS[name].about)
        | {
            "FILE.npz": "train_x train_y test_x test_y: uint8 (n, height, width, 3), integer labels; or MedMNIST's. "
            "unlabelled_x: images for clients; train_client: whose they are",
            "DIR": "ImageFolder layout: train/CLASS/* and test/CLASS/* (or val/); unlabelled/: images for clients",
            "hf:NAME": "of the Hugging Face hub, or hf:DIRECTORY; hf:NAME:SUBSET?label=COLUMN&test=SPLIT chooses "
            "(simsfl[datasets])",
        },
    }
    for door in [door for door in RunConfig().chosen if door != "arch"]:
        sections[f"{door}s"] = _listed(door, lambda name, door=door: _with_options(door, name))
    table = Table.grid(padding=(0, 2))
    for title, names in sections.items():
        if not names:  # such as callbacks, which plugins alone have
            continue
        table.add_row(Text(title, "bold"))
        for name, text in names.items():
            table.add_row(f"  {name}", text)
    console.print(table)


def _listed(door: str, text_of: Callable[[str], str | Text]) -> dict[str, Text]:
    """Return what is said of each name at a door, and which plugin it comes from.

    Args:
        door: one of `DOORS`.
        text_of: function of a name that returns what is said of it.
    """
    rows = {}
    for name, known in DOORS[door].items():
        plugin = plugins.name_of(code_of(known))
        rows[name] = Text.assemble(text_of(name), (f"\nfrom the plugin {plugin}" if plugin else "", "dim"))
    return rows


def _of_architecture(name: str) -> Text:
    """Return what is said of an architecture: where it can be cut, or why that is not known, and its options."""
    try:
        cut = f"cut layer 1 to {layer_count(name)}"
    except Exception as error:  # whatever somebody's code raises
        reason = " ".join((str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}").split())
        cut = f"cannot be built for images of 32 pixels ({reason})"
    return _with_options("arch", name, cut)


def _with_options(door: str, name: str, summary: str | None = None) -> Text:
    """Return the summary of what a door leads to, and the flags of its options with their defaults.

    Args:
        door: one of `DOORS`.
        name: a name there.
        summary: the summary; None for the first line of the docstring.
    """
    kind = code_of(DOORS[door][name]).load()
    options = [f"--{door}.{spec.name} {spec.default}" for spec in options_in(kind)]
    text = _summary_of(kind) if summary is None else summary
    return Text.assemble(text, ("\n" + "  ".join(options) if options else "", "dim"))


def _summary_of(thing: Any) -> str:
    """Return the first line of a docstring; empty where there is none."""
    return (thing.__doc__ or "").strip().split("\n")[0]
