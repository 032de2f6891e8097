"""Rerun a table of the paper: ``python experiments/table.py 3 --budget 20``, or ``simsfl table 3 --budget 20``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("table"))
