"""Imports run strictly downward, the old functorch is not used, and the README's example runs."""

import ast
import re
from pathlib import Path

import pytest

from simsfl.cli import attack, run
from simsfl.cli.bench import program as bench
from simsfl.cli.cost import program as cost
from simsfl.cli.table import program as table
from simsfl.hw_profile.bench import program as pi_bench
from simsfl.hw_profile.devices import client, keys, server

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"kernels"},
    {"names", "files", "signals", "randomness", "clock", "allocator", "trace", "console", "precision"},
    {"notation", "limits", "arguments", "tensor_file"},
    {"config", "storage"},
    {"data", "models", "partition", "privacy", "privacy.similarity"},
    {"views", "state", "schedule", "communication", "rules", "privacy.decoders"},
    {"plan", "clients", "single", "server", "sync", "wire", "privacy.resistance"},
    {"step", "footprint"},
    {"federated", "reference"},
    {"tuning", "capture", "observer"},
    {"assembly", "evaluate", "cost", "checkpoint", "metrics"},
    {"run_directory", "privacy.inversion"},
    {"weights", "privacy.attack"},
    {"simulation", "dashboard"},
    {"recorder"},
    {"session"},
]
"""Lowest first; a module may import from the layers below its own. Packages are free within."""


def modules():
    for path in sorted((ROOT / "simsfl").rglob("*.py")):
        parts = path.relative_to(ROOT / "simsfl").with_suffix("").parts
        if parts != ("__init__",):
            yield room(parts), path
    for path in sorted((ROOT / "kernels").glob("*.py")):
        yield "kernels", path


def room(parts):
    """The part of the library that a module is of; the modules of privacy/ are on several floors."""
    return ".".join(parts[:2]) if parts[0] == "privacy" and parts[-1] != "__init__" else parts[0]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "simsfl":
                yield from (f"simsfl.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: getattr(value, "stem", value))
def test_imports_run_downward(module, path):
    (layer,) = [i for i, names in enumerate(LAYERS) if module in names]
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] != "functorch", f"{path} imports functorch"
        if parts[0] != "simsfl":
            assert parts[0] not in ("experiments", "hw_profile", "flags", "presets")
            continue
        (other,) = [i for i, names in enumerate(LAYERS) if room(parts[1:]) in names]
        assert other < layer or room(parts[1:]) == module, (
            f"{path.relative_to(ROOT)} imports {name}, which is not below it"
        )


def test_the_readmes_picture_lists_every_module():
    (picture,) = re.findall(r"```\n(experiments/.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    for module, _ in modules():
        assert re.search(rf"\b{module}\b", picture), module
    for path in (ROOT / "kernels").glob("[!_]*.py"):
        assert re.search(rf"\b{path.stem}\b", picture), path.stem


def test_the_readmes_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(example.splitlines()) <= 20
    exec(compile(example, "README.md", "exec"), {})


def test_the_readmes_flags_exist():
    text = (ROOT / "README.md").read_text() + (ROOT / "hw_profile" / "README.md").read_text()
    programs = (run, bench, table, cost, attack, pi_bench, server, client, keys)
    parsers = [program.parser() for program in programs]
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= known
