"""Make ImageNet-12 from a local ImageNet: ``python experiments/prepare_imagenet12.py --imagenet DIR``."""

import sys

from simsfl.cli.main import start

if __name__ == "__main__":
    sys.exit(start("prepare-imagenet12"))
