"""Attack a run by model inversion: ``python experiments/attack.py RUN_DIR``, or ``simsfl attack RUN_DIR``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("attack"))
