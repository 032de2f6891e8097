"""Makes simsfl importable from a checkout that was merely copied to a device; the first import of every program here.

Installed, ``kernels/`` is `simsfl.kernels`; in a checkout it lies beside the package, and is found there.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Kernels:
    """Finds `simsfl.kernels` here, whatever is installed."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if name != "simsfl.kernels":
            return None
        place = ROOT / "kernels"
        return importlib.util.spec_from_file_location(
            name, place / "__init__.py", submodule_search_locations=[str(place)]
        )


def require(**packages: str) -> None:
    """End the program with one line where something is not installed.

    Args:
        packages: what is imported, and the package that it comes with.
    """
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"error: {missing[0]}: is not installed; allowed: pip install {' '.join(missing)}", file=sys.stderr)
        sys.exit(2)


sys.path.insert(0, str(ROOT))
sys.meta_path.insert(0, Kernels)
