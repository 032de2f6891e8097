"""Write docs/results.md: ``python experiments/results_page.py --run --budget 120``, or ``simsfl results-page ...``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("results-page"))
