"""Write a trained backbone, or a client, for use without simsfl: ``python experiments/export.py RUN_DIR``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("export"))
