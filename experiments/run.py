"""Train one run: ``python experiments/run.py --clients 1000``, or ``simsfl run --clients 1000``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("run"))
