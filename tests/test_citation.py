"""The file CITATION.cff names this version, and the papers that docstrings name."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
NAMED = re.compile(
    r"\b([A-Z]\w+)(?: et al\.|(?:, [A-Z]\w+)? (?:and|&) [A-Z]\w+),? (?:in )?\(?(?:[A-Z][\w-]*,? )*(\d{4})\b"
)
"""A paper in a docstring, such as "Zbontar et al., ICML 2021": its first author, and its year."""


def test_every_paper_that_a_docstring_names_is_cited():
    cited = set()
    for reference in CITATION.partition("\nreferences:")[2].split("\n  - type: ")[1:]:
        first, year = re.search(r"family-names: ([^}]+)", reference), re.search(r"\n    year: (\d+)", reference)
        cited.add((first[1], year[1]))
    named = {}
    for file in (one for room in ("simsfl", "kernels", "hw_profile") for one in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said = re.sub(r"\s+", " ", node.value)
                named |= dict.fromkeys(NAMED.findall(said), file.name)
    assert len(named) > 30
    assert {paper: where for paper, where in named.items() if paper not in cited} == {}


def test_every_paper_of_the_concepts_is_cited():
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8").partition("\n## The papers\n")[2]
    titles = re.findall(r"\[([^]]+)\]\(https:", page)
    assert len(titles) > 15
    assert [title for title in titles if title.lower() not in CITATION.lower()] == []


def test_it_names_this_version_and_its_licence():
    metadata = dict(re.findall(r'    (\w+)="([^"]+)",\n', (ROOT / "setup.py").read_text(encoding="utf-8")))
    assert f"\nversion: {metadata['version']}\n" in CITATION
    assert f"\nlicense: {metadata['license_expression']}\n" in CITATION
