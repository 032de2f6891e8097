"""Put the figures of ``benchmarks/*.json`` into ``docs/performance.md``: ``python experiments/performance.py``.

Each table stands between ``<!-- NAME.json -->`` and ``<!-- end -->``, and is that of ``bench.py --json``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from rich.table import Table

from bench import tables

ROOT = Path(__file__).parent.parent
PLACE = re.compile(r"(<!-- (\S+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Rewrite the page; the exit code."""
    page = ROOT / "docs" / "performance.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(PLACE.sub(filled, text), encoding="utf-8")
    return 0


def filled(place: re.Match[str]) -> str:
    """The place with its tables."""
    report = json.loads((ROOT / "benchmarks" / place[2]).read_text(encoding="utf-8"))
    return place[1] + "\n".join(markdown(table) for table in tables(report)) + place[3]


def markdown(table: Table) -> str:
    """A rich table as Markdown."""
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    heads = [str(column.header) for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = [heads, rules, *zip(*cells, strict=True)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"*{table.title}*", "", *lines, "", f"*{table.caption}*", ""])


if __name__ == "__main__":
    sys.exit(main())
