"""Tell a run in the time and energy of a fleet: ``python experiments/fleet.py``, or ``simsfl fleet``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("fleet"))
