"""What the pages show and import is public: each such module lists it in ``__all__``, and its types are checked."""

import json
import re
from importlib import import_module
from types import ModuleType

import pytest

import simsfl
from docs.generate import ROOT

PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
EXAMPLE = "simsfl.hw_profile.meters.hwmon"
"""The module that a recipe adds."""


def text_of(page):
    """Return the text of a page, or the code of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")


def named():
    """Return what pages show or import, by the module that has it; for whole modules, nothing is named."""
    found = {home: {name} for name, home in simsfl._HOMES.items()}
    found["simsfl.cli.api"] = {"run", "resume"}
    for text in map(text_of, PAGES):
        for module, names in re.findall(r"^from (simsfl[\w.]*) import (.+)$", text, re.MULTILINE):
            found.setdefault(module, set()).update(re.split(", ?", names))
        for shown in re.findall(r"^::: (simsfl[\w.]*)$", text, re.MULTILINE):
            home, _, name = shown.rpartition(".")
            if home and not isinstance(getattr(import_module(home), name), ModuleType):
                found.setdefault(home, set()).add(name)
            else:
                found.setdefault(shown, set())
    del found[EXAMPLE]
    return found


NAMED = named()


@pytest.mark.parametrize("module", NAMED)
def test_public_names_are_listed(module):
    home = import_module(module)
    values = {name: getattr(home, name) for name in NAMED[module]}
    modules = {name for name, value in values.items() if isinstance(value, ModuleType)}
    assert all(getattr(home, name).__all__ for name in modules)
    if values.keys() - modules or not values:
        assert set(home.__all__) >= values.keys() - modules
        assert [name for name in home.__all__ if not hasattr(home, name)] == []


def test_types_of_what_the_reference_shows_are_checked():
    """The list in .ci/types, in which braces stand for several modules, as in Bash."""
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    text = re.search(r"modules=\((.*?)\n\)", (ROOT / ".ci" / "types").read_text(), re.DOTALL)[1]
    checked = set()
    for word in text.split():
        before, braces, after = re.fullmatch(r"([\w.]*)(?:\{([\w.,]*)\}([\w.]*))?", word).groups()
        checked |= {f"{before}{one}{after or ''}" for one in (braces or "").split(",")}
    shown = {module for module in NAMED if re.search(rf"^::: {re.escape(module)}(\.\w+)?$", reference, re.MULTILINE)}
    assert len(shown) > 4
    assert shown - checked == set()
