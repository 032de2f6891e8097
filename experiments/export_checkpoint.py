"""Write weights in the published program's layout: ``python experiments/export_checkpoint.py RUN_DIR``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("export-checkpoint"))
