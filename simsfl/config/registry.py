"""Code behind a name: an object of simsfl that is imported when it is asked for, or one registered from outside."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

_ENTRY_POINTS = "simsfl.plugins"
"""Group of entry points by which installed packages name modules that register things."""
_found: list[str] = []
"""Names of the entry points that have been loaded."""


@dataclass(frozen=True)
class Origin:
    """Where a registered object comes from."""

    module: str
    """Name of its module."""
    file: str
    """Path of the module's file."""
    version: str | None
    """Version of the package that the module belongs to, if it has one."""
    sha256: str
    """SHA-256 of the file, or of all Python files of the package."""


@dataclass(frozen=True)
class Code:
    """An object that is imported when it is asked for, so that ``--help`` needs no torch, or that is at hand.

    >>> Code("math:floor").load()(2.5)
    2
    """

    path: str
    """Module and object, such as ``simsfl.models.resnet:resnet8``."""
    registered: Any = None
    """The object itself, if it has been registered from outside simsfl."""

    def load(self) -> Any:
        """Return the object; import its module if needed."""
        if self.registered is not None:
            return self.registered
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)

    @property
    def origin(self) -> Origin | None:
        """Return where the object comes from; None for simsfl's own."""
        if self.registered is None:
            return None
        module = sys.modules[self.registered.__module__]
        return Origin(module.__name__, str(Path(module.__file__).resolve()), _version_of(module), _sha256_of(module))


def registered(thing: Any) -> Code:
    """Return the code of an object that somebody registers."""
    return Code(f"{thing.__module__}:{thing.__qualname__}", thing)


def load_plugin(name: str) -> None:
    """Import a module by its name or the path of its file, so that it registers what it has.

    Raises:
        ValueError: there is no such module or file, or it cannot be imported.
    """
    path = Path(name)
    is_file = path.suffix == ".py" or len(path.parts) > 1
    if is_file and not path.is_file():
        raise ValueError(f"plugin: there is no file {name}; allowed: the name of a module, or the path of its file")
    try:
        if is_file:
            _import_file(path.resolve())
        else:
            import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise ValueError(_failed(name, error)) from error
        raise ValueError(f"plugin: there is no module {name}; allowed: a module, or the path of its file") from error
    except Exception as error:  # whatever somebody's code raises
        raise ValueError(_failed(name, error)) from error


def load_installed_plugins() -> None:
    """Import the modules that installed packages name in the group of entry points ``simsfl.plugins``, once.

    Raises:
        ValueError: one of them cannot be imported.
    """
    for point in metadata.entry_points(group=_ENTRY_POINTS):
        if point.value not in _found:
            _found.append(point.value)
            load_plugin(point.value.partition(":")[0])


def _import_file(path: Path) -> None:
    """Import a Python file, once, as a module that is called like it."""
    name = f"simsfl_plugin_{path.stem}"
    if name in sys.modules and Path(sys.modules[name].__file__) == path:
        return
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _failed(name: str, error: Exception) -> str:
    """Return the message for a plugin that cannot be imported: the error, and the line of its file."""
    lines, trace = [], error.__traceback__
    while trace:
        lines.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [f"{file}:{line}" for file, line in lines if Path(file).stem == Path(name).stem.rpartition(".")[2]]
    where = f" at {own[-1]}" if own else ""
    return f"plugin: {name} cannot be imported ({type(error).__name__}: {error}{where}); allowed: one that can"


def _version_of(module: ModuleType) -> str | None:
    """Return the version of a module's package, from its ``__version__`` or as it is installed."""
    package = module.__name__.partition(".")[0]
    own = getattr(sys.modules.get(package, module), "__version__", None)
    if own is not None:
        return str(own)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _sha256_of(module: ModuleType) -> str:
    """Return the SHA-256 of a module's file, or of all Python files of its package, in the order of their paths."""
    package = sys.modules.get(module.__name__.partition(".")[0])
    roots = list(getattr(package, "__path__", []))
    files = sorted(file for root in roots for file in Path(root).rglob("*.py")) or [Path(module.__file__)]
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()
