"""Write figures and a page about runs: ``python experiments/report.py RUN_DIR``, or ``simsfl report RUN_DIR``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("report"))
