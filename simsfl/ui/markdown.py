"""Markdown pages: text that is taken literally, tables and pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from urllib.parse import quote

from rich.table import Table

_MARKUP = re.compile(r"[\\`*<~$|]|(?<![^\W_])_|_(?![^\W_])|\](?=[\[(])|&(?=#?\w+;)")
"""What Markdown, or a formula in ``$`` on GitHub, would not show as it is. Underscores within a word are harmless, for
example, and so are brackets that no link follows."""
_IN_BRACKETS = re.compile(r"[\[\]]|" + _MARKUP.pattern)
"""What would not be shown as it is in brackets, where other brackets count, too."""


def escaped(text: str) -> str:
    r"""Return Markdown that shows a text literally, on one line.

    >>> print(escaped("a|b, _c_, $x$, laptop_run [%]"))
    a\|b, \_c\_, \$x\$, laptop_run [%]
    """
    return _literal(text, _MARKUP)


def _literal(text: str, markup: re.Pattern[str]) -> str:
    """Return a text on one line with a backslash before what `markup` matches, and a sign for what has no shape."""
    visible = "".join(character if character.isprintable() else "\ufffd" for character in " ".join(text.split()))
    return markup.sub(r"\\\g<0>", visible)


def picture(text: str, path: str | os.PathLike[str]) -> str:
    """Return Markdown that shows a picture.

    Args:
        text: what is shown where the picture cannot be.
        path: path of its file, relative to the page.

    >>> picture("two runs", "figures/my run.png")
    '![two runs](figures/my%20run.png)'
    """
    return f"![{_literal(text, _IN_BRACKETS)}]({quote(os.fsencode(path))})"


def lines_of(cells: Sequence[Sequence[str]], right: Sequence[bool] | None = None) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        cells: text of the cells, row by row; the first row is the heading.
        right: whether each column is aligned to the right; None for no column.

    >>> lines_of([["", "a"], ["loss", "1"]], right=[False, True])
    ['|  | a |', '| --- | ---: |', '| loss | 1 |']
    """
    rules = ["---:" if one else "---" for one in right or [False] * len(cells[0])]
    head, *others = [list(map(escaped, row)) for row in cells]
    return [f"| {' | '.join(row)} |" for row in (head, rules, *others)]


def markdown(table: Table) -> str:
    """Return a rich table as Markdown, with its title above and its caption below, in italics."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    lines = lines_of(list(zip(*columns, strict=True)), [column.justify == "right" for column in table.columns])
    title, caption = (f"*{escaped(str(text))}*" if text else "" for text in (table.title, table.caption))
    return "\n".join([title, "", *lines, "", caption, ""])
