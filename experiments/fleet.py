"""Tell a run in the time and energy of a fleet: ``python experiments/fleet.py``, or ``simsfl fleet``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("fleet"))
