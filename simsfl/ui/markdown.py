"""Conversion of rich tables to Markdown."""

from __future__ import annotations

from rich.table import Table


def markdown(table: Table) -> str:
    """Return a rich table as Markdown, with its title above and its caption below, in italics."""
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    heads = [str(column.header) for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = [heads, rules, *zip(*cells, strict=True)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"*{table.title}*", "", *lines, "", f"*{table.caption}*", ""])
