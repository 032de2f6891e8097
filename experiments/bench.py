"""Time a step of each engine: ``python experiments/bench.py``, or ``simsfl bench``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("bench"))
