"""Markdown that shows any text literally: cells, headings and pictures."""

from urllib.parse import unquote

import pytest
from rich.table import Table
from rich.text import Text

from simsfl.ui.markdown import escaped, lines_of, markdown, picture

MarkdownIt = pytest.importorskip("markdown_it").MarkdownIt  # which rich needs


NAMES = [
    "a|b",
    "_name",
    "name_",
    "__init__",
    "$x$",
    "*bold* and **more**",
    "`code`",
    "~~gone~~",
    "<b>html</b>",
    "[a](b)",
    "[a][b] [c]",
    "![picture](x.png)",
    "R&D &amp; &#124;",
    "back\\slash \\| \\\\",
    "läufer-ö 实验 🙂",
    "laptop_run_1 [%] (5 $)",
    "https://x.y/z_",
]
"""Texts that are marked up, or look as if they were."""


def shown(page):
    """Return the text of the cells, headings and emphasised paragraphs of a page, as a browser would show it."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    texts = []
    for token in tokens:
        if token.type == "inline":
            assert {child.type for child in token.children} <= {"text", "em_open", "em_close", "image", "text_special"}
            texts.append("".join(part.content for child in token.children for part in child.children or [child]))
    return texts


@pytest.mark.parametrize("name", NAMES)
def test_text_is_shown_literally(name):
    assert shown(f"## {escaped(name)}\n") == [name]
    assert shown("\n".join(lines_of([["", name], [name, "1"]]))) == ["", name, name, "1"]
    assert shown(picture(name, "x.png")) == [name]
    table = Table(title=Text(name), caption=Text(name))
    table.add_column(Text(name), justify="right")
    table.add_row(Text(name))
    assert shown(markdown(table)) == [name] * 4


def test_what_is_on_several_lines_or_cannot_be_shown_stays_in_its_cell():
    assert escaped("a\nb\t\r\n c") == "a b c"
    assert escaped("a\x1b[31mb\udcff") == "a\ufffd[31mb\ufffd"
    assert len(lines_of([["x\ny"], ["1"]])) == 3


def test_a_table_is_that_of_the_terminal():
    """There, square brackets mean nothing either."""
    table = Table(title="a [bold]title[/]")
    table.add_column("", justify="left")
    table.add_column("here", justify="right")
    table.add_row("[red]a", "[ms]")
    assert markdown(table) == "*a [bold]title[/]*\n\n|  | here |\n| --- | ---: |\n| [red]a | [ms] |\n\n\n"


@pytest.mark.parametrize("path", ["my run/a.png", "größe/(1).png", "a%20b.png", "a|b<c>.png", "../x.png"])
def test_paths_of_pictures_are_quoted(path):
    (token,) = [token for token in MarkdownIt().parse(picture("text", path)) if token.type == "inline"]
    assert unquote(token.children[0].attrs["src"]) == path
