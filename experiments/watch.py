"""Watch a run that another process trains: ``python experiments/watch.py RUN_DIR``, or ``simsfl watch RUN_DIR``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("watch"))
