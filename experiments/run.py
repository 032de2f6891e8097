"""Train one run: ``python experiments/run.py --clients 1000``, or ``simsfl run --clients 1000``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("run"))
