"""Make ImageNet-12 from a local ImageNet: ``python experiments/prepare_imagenet12.py --imagenet DIR``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this checkout, which need not be installed
    from simsfl.cli.main import start

    sys.exit(start("prepare-imagenet12"))
