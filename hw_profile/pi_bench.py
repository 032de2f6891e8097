"""Measure the work of a client on this machine: ``python hw_profile/pi_bench.py``, or ``simsfl pi-bench``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("pi-bench"))
