"""The documentation is a site that builds without warnings and loads nothing from elsewhere, and its notebooks run."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from docs.generate import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def started(module, *words):
    """Run a module as a program in the repository; return the finished process, with what it printed."""
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert "docs/index.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_are_stored_whole_and_small(notebook):
    """The stored notebooks were run from top to bottom without an error, so their outputs are those of their code."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "display_data" in kinds <= {"display_data", "execute_result", "stream"}
    assert "/home/" not in notebook.read_text()
    assert notebook.stat().st_size < 150_000


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run(notebook, tmp_path):
    pytest.importorskip("nbconvert")
    pytest.importorskip("ipykernel")
    words = [*("--to", "notebook", "--execute", "--output-dir", str(tmp_path)), str(notebook)]
    done = started("nbconvert", *words)
    assert done.returncode == 0, done.stderr
    drawn = [file.read_text().count('"image/png"') for file in (notebook, tmp_path / notebook.name)]
    assert drawn[0] == drawn[1]


class Loaded(HTMLParser):
    """Collects what a page loads: scripts, styles, pictures and the like, but not what it only links to."""

    def __init__(self):
        super().__init__()
        self.urls = []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.urls += [named[name] for name in ("src", "srcset", "data") if named.get(name)]
        if tag == "link" and named.get("rel") != "canonical":
            self.urls.append(named["href"])


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("nbconvert")
    done = started("mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    pages = {str(page.relative_to(tmp_path / "site")): page.read_text() for page in (tmp_path / "site").rglob("*.html")}
    for name, page in pages.items():
        parser = Loaded()
        parser.feed(page)
        assert [url for url in parser.urls if re.match(r"(https?:)?//", url)] == [], name
    assert "momentum encoders of clients are never averaged" in pages["decisions/index.html"]
    assert 'href="../scaling/"' in pages["changelog/index.html"]  # docs/scaling.md on a code host
    assert "objective.temperature" in pages["flags/index.html"]
    assert 'id="simsfl.Simulation.train"' in pages["api/simsfl/index.html"]
    assert pages["notebooks/first_run/index.html"].count("<img") >= 1
