"""Run a grid of settings: ``python experiments/sweep.py --lr 0.02,0.06 --seeds 0,1,2``, or ``simsfl sweep ...``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("sweep"))
