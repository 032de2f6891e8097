"""Write figures and a page about runs: ``python experiments/report.py RUN_DIR``, or ``simsfl report RUN_DIR``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("report"))
