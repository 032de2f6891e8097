"""Convert weights from the published program's layout: ``python experiments/import_checkpoint.py FILE.tar``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("import-checkpoint"))
