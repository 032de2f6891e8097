"""Give the records of runs to trackers: ``python experiments/track.py RUN_DIR``, or ``simsfl track RUN_DIR``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("track"))
