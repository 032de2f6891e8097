"""Train a run in which real devices take part: ``python hw_profile/server.py``, or ``simsfl server``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("server"))
