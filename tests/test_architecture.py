"""Imports run strictly downward without circles, the old functorch is not used, and pages are up to date."""

import json
import re
from graphlib import TopologicalSorter

import pytest

from docs import diagram, evening, generate
from simsfl.cli import run, watch
from simsfl.cli.attack import program as attack
from simsfl.cli.bench import program as bench
from simsfl.cli.cost import program as cost
from simsfl.cli.fleet import program as fleet
from simsfl.cli.main import PROGRAMS
from simsfl.cli.report import program as report
from simsfl.cli.results import program as results
from simsfl.cli.sweep import program as sweep
from simsfl.cli.table import cells
from simsfl.cli.table import program as table
from simsfl.config import RunConfig
from simsfl.system.programs import door

README = (generate.ROOT / "README.md").read_text()
MODULES = list(generate.modules())
IMPORTS = {name: list(generate.imports(file)) for _, name, file in MODULES}
ROOM = {name: room for room, name, _ in MODULES}


def module_of(imported):
    """Return the module of the library that an import refers to, which may name something in it; None for others."""
    imported = {"simsfl.RunConfig": "simsfl.config", "simsfl.Simulation": "simsfl.simulation"}.get(imported, imported)
    return imported if imported in ROOM else parent if (parent := imported.rpartition(".")[0]) in ROOM else None


def test_every_module_has_a_room():
    inside = {file for _, _, file in MODULES}
    doors = {generate.ROOT / "simsfl" / name for name in ("__init__.py", "__main__.py")}
    assert set((generate.ROOT / "simsfl").rglob("*.py")) == {f for f in inside if "simsfl" in f.parts} | doors


@pytest.mark.parametrize("name", IMPORTS)
def test_imports_run_downward(name):
    for imported in IMPORTS[name]:
        top = imported.split(".")[0]
        assert top not in ("functorch", "experiments", "tests", "benchmarks", ""), f"{name} imports {imported}"
        other = module_of(imported)
        assert other or top != "simsfl" or imported == "simsfl", imported
        if other and ROOM[other] != ROOM[name]:
            below = generate.ROOMS.index(ROOM[other]) > generate.ROOMS.index(ROOM[name])
            assert below, f"{name} imports {other}, which is not below it"


def test_there_are_no_circles():
    graph = {name: {module_of(one) for one in imported} - {None, name} for name, imported in IMPORTS.items()}
    for name, others in graph.items():  # a package imports its modules, which do not need what is in its own file
        graph[name] = {other for other in others if not name.startswith(f"{other}.")}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_the_readme_explains_its_words_at_their_first_use():
    """What the paper's variants are is as in the tables, and the k of kNN is that of the config."""
    said = re.findall(r"\*\*(MocoSFL-\d)\*\* is cut layer (\d)", README)
    assert {name: int(cut) for name, cut in said} == cells._VARIANTS
    for word, explained in (("smashed data", "called *smashed data*"), ("kNN", f"k = {RunConfig().knn_k}")):
        assert explained in README[README.index(word) - 10 :][:70]


def test_the_readme_is_what_a_newcomer_needs():
    assert len(README.splitlines()) <= 120


GENERATED = {
    "architecture": ("rooms", generate.picture),
    "flags": ("flags", generate.flags),
}
"""Pages of which a part is generated, with the name of the part and the function that returns it."""


@pytest.mark.parametrize("page", GENERATED)
def test_what_is_generated_is_up_to_date(page):
    name, made = GENERATED[page]
    text = (generate.ROOT / "docs" / f"{page}.md").read_text()
    (shown,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    assert shown == made(), "run: python docs/generate.py"


def test_the_figure_of_the_algorithm_is_up_to_date():
    assert diagram.FILE.read_text() == diagram.svg(), "run: python docs/diagram.py"


def test_the_evening_is_shown_as_it_was_kept():
    kept = json.loads(evening.KEPT.read_text("utf-8"))
    assert evening.table(kept) in (generate.ROOT / "docs" / "accuracy.md").read_text("utf-8"), "docs/evening.py"


def test_the_tables_of_methods_are_up_to_date():
    page = (generate.ROOT / "docs" / "extending.md").read_text()
    shown = re.findall(r"<!-- methods of (\w+) -->\n(.*?)<!-- end -->", page, flags=re.DOTALL)
    assert {"Objective", "Aggregation", "Defence"} <= {name for name, _ in shown}
    for name, methods in shown:
        assert methods == generate.methods(name), "run: python docs/generate.py"


def test_every_program_has_a_door():
    for name in PROGRAMS:
        assert f'start("{name}")' in (generate.ROOT / door(name)).read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/api/simsfl.md", "docs/guides/data.md"])
def test_python_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (generate.ROOT / page).read_text(), flags=re.DOTALL)
    assert len(example.splitlines()) <= 20
    exec(compile(example, page, "exec"), {})


def test_flags_of_the_pages_exist():
    pytest.importorskip("zmq")
    from simsfl.hw_profile.bench import program as pi_bench  # noqa: PLC0415
    from simsfl.hw_profile.devices import client, keys, server  # noqa: PLC0415

    pages = [*(generate.ROOT / "docs").rglob("*.md"), generate.ROOT / "hw_profile" / "README.md"]
    text = "\n".join([README, *(page.read_text() for page in pages if page.name != "extending.md")])  # its own flags
    programs = (run, watch, bench, table, report, sweep, results, cost, attack, fleet, pi_bench, server, client, keys)
    parsers = [program.parser() for program in programs]
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= known
