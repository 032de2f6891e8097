"""Bring what is generated in the documentation up to date: ``python docs/generate.py``.

The tables of ``docs/performance.md`` stand between ``<!-- NAME.json -->`` and ``<!-- end -->``, and are made from
``benchmarks/NAME.json``, which ``bench.py --json`` writes.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from simsfl.cli.bench.program import tables
from simsfl.ui.markdown import markdown

ROOT = Path(__file__).parent.parent
PLACE = re.compile(r"(<!-- (\S+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Rewrite the pages; return the exit code."""
    page = ROOT / "docs" / "performance.md"
    page.write_text(PLACE.sub(_filled, page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def _filled(place: re.Match[str]) -> str:
    """Return the place with its tables."""
    report = json.loads((ROOT / "benchmarks" / place[2]).read_text(encoding="utf-8"))
    return place[1] + "\n".join(markdown(table) for table in tables(report)) + place[3]


if __name__ == "__main__":
    sys.exit(main())
