"""Write docs/results.md: ``python experiments/results_page.py --run --budget 120``, or ``simsfl results-page ...``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("results-page"))
