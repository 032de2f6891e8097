"""Write a trained backbone, or a client, for use without simsfl: ``python experiments/export.py RUN_DIR``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("export"))
