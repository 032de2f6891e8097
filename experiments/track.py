"""Give the records of runs to trackers: ``python experiments/track.py RUN_DIR``, or ``simsfl track RUN_DIR``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("track"))
