"""Run a grid of settings: ``python experiments/sweep.py --lr 0.02,0.06 --seeds 0,1,2``, or ``simsfl sweep ...``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("sweep"))
