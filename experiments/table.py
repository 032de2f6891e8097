"""Rerun a table of the paper: ``python experiments/table.py 3 --budget 20``, or ``simsfl table 3 --budget 20``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("table"))
