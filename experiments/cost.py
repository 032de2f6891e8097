"""Estimate what taking part costs a client: ``python experiments/cost.py``, or ``simsfl cost``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("cost"))
