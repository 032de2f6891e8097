"""Make the keys of a server and its devices: ``python hw_profile/keys.py``, or ``simsfl keys``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("keys"))
