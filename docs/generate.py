"""Bring what is generated in the documentation up to date: ``python docs/generate.py``.

The picture of the library in ``docs/architecture.md`` is made from `ROOMS` and from the packages' docstrings, and the
tables of ``docs/flags.md`` from the flags themselves. The tables of ``docs/performance.md`` are made from
``benchmarks/NAME.json``, which ``bench.py --json`` writes. Those of ``docs/extending.md`` list what a class of
`simsfl.extend` may define. Each stands between ``<!-- NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from textwrap import wrap

from simsfl import extend
from simsfl.cli import run
from simsfl.cli.bench.tables import tables
from simsfl.config import RunConfig
from simsfl.config.catalogue import DOORS
from simsfl.config.presets import PRESETS
from simsfl.config.registry import code_of
from simsfl.config.values import allowed_text, options_in
from simsfl.ui.markdown import lines_of, markdown

ROOT = Path(__file__).parent.parent
ROOMS = (
    "hw_profile",
    "cli",
    "ui",
    "testing",
    "extend",
    "attacks",
    "simulation",
    "rounds",
    "setup",
    "fleet",
    "runs",
    "cost",
    "engine",
    "algorithm",
    "objectives",
    "aggregations",
    "samplers",
    "optimisers",
    "defences",
    "privacy",
    "evaluation",
    "data",
    "models",
    "config",
    "system",
    "kernels",
)
"""The rooms of the library, from the top down; a room may import from those below it."""
_BESIDE = ("hw_profile", "kernels")
"""Rooms that lie beside ``simsfl/`` in a checkout."""
_TABLE = re.compile(r"(<!-- (\S+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)
_METHODS = re.compile(r"(<!-- methods of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PICTURE = re.compile(r"(<!-- rooms -->\n).*?(<!-- end -->)", re.DOTALL)
_FLAGS = re.compile(r"(<!-- flags -->\n).*?(<!-- end -->)", re.DOTALL)
_WIDTH, _COLUMN = 118, 23
"""Characters of the picture's lines, and of the column of its rooms."""


def main() -> int:
    """Rewrite the pages; return the exit code."""
    pages = ROOT / "docs"
    _rewrite(pages / "architecture.md", _PICTURE, lambda place: place[1] + picture() + place[2])
    _rewrite(pages / "flags.md", _FLAGS, lambda place: place[1] + flags() + place[2])
    _rewrite(pages / "performance.md", _TABLE, _with_tables)
    _rewrite(pages / "extending.md", _METHODS, lambda place: place[1] + methods(place[2]) + place[3])
    return 0


def modules() -> Iterator[tuple[str, str, Path]]:
    """Yield room, full name and file of each module of the library."""
    for room in ROOMS:
        top = ROOT / room if room in _BESIDE else ROOT / "simsfl" / room
        for file in sorted(top.rglob("*.py")) if top.is_dir() else [top.with_suffix(".py")]:
            inside = file.relative_to(top.parent).with_suffix("").parts
            yield room, ".".join(("simsfl", *inside)).removesuffix(".__init__"), file


def imports(file: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, except imports that only type checkers see."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def picture() -> str:
    """Return the picture of the rooms as a Markdown block: what each is for, and its modules."""
    lines = []
    for room, found in groupby(modules(), key=itemgetter(0)):
        own = [(name, file) for _, name, file in found]
        about = ast.get_docstring(ast.parse(own[0][1].read_text(encoding="utf-8"))).splitlines()[0]
        purpose = about.rstrip(".").replace("`", "")  # the picture is a block of code, where marks are no markup
        place = "" if room in _BESIDE else "simsfl/"
        lines += _wrapped(f"{place}{room}{'/' if len(own) > 1 else '.py'}", purpose)
        folders: dict[str, list[str]] = {}
        for name, file in own[1:]:
            *inside, last = name.removeprefix(f"simsfl.{room}.").split(".")
            folders.setdefault("/".join(inside), []).extend([last] * (file.stem != "__init__"))
        for folder, names in sorted(folders.items()):
            lines += _wrapped("", f"{folder}/: {', '.join(names)}" if folder else ", ".join(names))
    return "```\n" + "\n".join(lines) + "\n```\n"


def methods(name: str) -> str:
    """Return the methods of a class of `simsfl.extend` as a Markdown table: how each is called, and what it does."""
    rows = []
    for method, function in vars(getattr(extend, name)).items():
        if callable(function) and not method.startswith("_"):
            arguments = ", ".join(list(inspect.signature(function).parameters)[1:])
            about = inspect.getdoc(function).split("\n\n")[0].replace("\n", " ").replace("``", "`")
            rows.append(f"| `{method}({arguments})` | {about} |")
    return "\n".join(["| method | what it does |", "|---|---|", *rows]) + "\n"


def flags() -> str:
    """Return the flags of ``simsfl run``, the options of what they choose, and the presets, as Markdown tables."""
    allowed = {spec.name: allowed_text(spec) for spec in fields(RunConfig)}
    tables = {}
    for group in run.parser()._action_groups:
        if group._group_actions and group.title != "options":  # those of --help
            rows = [[_written(one), one.help.replace("%%", "%"), allowed.get(one.dest, "")] for one in _shown(group)]
            tables[group.title.capitalize()] = [["flag", "what it sets", "allowed"], *rows]
    tables["Options of what is chosen"] = [["flag", "of", "what it sets", "default", "allowed"]] + [
        [f"`--{door}.{spec.name}`", name, spec.metadata["help"], str(spec.default), allowed_text(spec)]
        for door, known in DOORS.items()
        for name, kind in known.items()
        for spec in options_in(code_of(kind).load())
    ]
    rows = [[f"`{name}`", inspect.getdoc(preset), _changed(preset())] for name, preset in PRESETS.items()]
    tables["Presets"] = [["`--preset`", "what it is", "what it changes"], *rows]
    return "\n".join(line for title, cells in tables.items() for line in (f"## {title}\n", *_with_code(cells), ""))


def _with_code(cells: list[list[str]]) -> list[str]:
    """Return the lines of a table in which text between backticks is code, as docstrings and help texts mean it."""
    return [line.replace("\\`", "`") for line in lines_of(cells)]


def _shown(group: argparse._ArgumentGroup) -> Iterator[argparse.Action]:
    """Yield the flags of a group that ``--help`` shows."""
    return (action for action in group._group_actions if action.help != argparse.SUPPRESS)


def _written(action: argparse.Action) -> str:
    """Return a flag as it is written, with its value."""
    names = action.metavar if isinstance(action.metavar, str) else "NAME"
    return f"`{action.option_strings[0]}{'' if action.nargs == 0 else f' {names}'}`"


def _changed(config: RunConfig) -> str:
    """Return the fields that a preset changes, with their values."""
    changed = config.changed_from(RunConfig())
    return ", ".join(f"`{name} {value}`" for name, value in changed.items() if name != "preset")


def _wrapped(left: str, text: str) -> list[str]:
    """Return lines with `left` in a column of its own, and the text beside it."""
    return wrap(text, _WIDTH, initial_indent=f"{left:<{_COLUMN}}", subsequent_indent=" " * _COLUMN)


def _rewrite(page: Path, place: re.Pattern[str], fill: object) -> None:
    """Fill the places of a page."""
    page.write_text(place.sub(fill, page.read_text(encoding="utf-8")), encoding="utf-8")


def _with_tables(place: re.Match[str]) -> str:
    """Return a place with the tables of its JSON file."""
    report = json.loads((ROOT / "benchmarks" / place[2]).read_text(encoding="utf-8"))
    return place[1] + "\n".join(markdown(table) for table in tables(report)) + place[3]


if __name__ == "__main__":
    sys.exit(main())
