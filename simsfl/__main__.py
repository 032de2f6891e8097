"""Make ``python -m simsfl run --clients 1000`` the same as the command ``simsfl run --clients 1000``."""

import sys

from simsfl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
