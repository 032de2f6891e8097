"""Watch a run that goes on elsewhere: ``python experiments/watch.py RUN_DIR``, or ``simsfl watch RUN_DIR``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("watch"))
