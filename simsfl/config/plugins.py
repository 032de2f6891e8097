"""Plugins: modules from outside that register what they have (`simsfl.extend`), so that a config may choose it.

A plugin is loaded by ``--plugin``, by the environment variable ``SIMSFL_PLUGINS`` (several are separated as those in
``PATH`` are), or because an installed package names it in the group of entry points ``simsfl.plugins``. A run directory
never causes one to be loaded: it is data, which may come from others, and a plugin is a program.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from simsfl.config.catalogue import DOORS
from simsfl.config.registry import Code, RegistrationError, code_of
from simsfl.system.decoding import decode

log = logging.getLogger(__name__)
_GROUP = "simsfl.plugins"
_VARIABLE = "SIMSFL_PLUGINS"
_OF_FILE = "simsfl_plugin_"
"""Beginning of the names of modules that are made from files."""
FROM_PLUGINS = "those of a --plugin"
"""What a name at a door may be beside those that are known, for errors."""
_warned: set[str] = set()
"""Names of plugins about which a warning has been given."""


@dataclass(frozen=True)
class Plugin:
    """A plugin that a run uses."""

    name: str
    """Name of its package, or of its file if it is in none."""
    version: str | None
    """Version of the package or file, if it has one."""
    sha256: str
    """Checksum of the file, or of all Python files of the package; empty where the source is in no file."""

    def __str__(self) -> str:
        """Return the name, the version and the beginning of the checksum, as far as they are known."""
        version = f" {self.version}" if self.version else ""
        return f"{self.name}{version}" + (f" ({self.sha256[:8]})" if self.sha256 else "")


def load(name: str) -> None:
    """Import a plugin, and have processes that this one starts import it as well.

    Args:
        name: name of a module, or path of a Python file.

    Raises:
        ValueError: there is no such module or file, or it cannot be imported.
    """
    if not name:
        raise ValueError("plugin: is empty; allowed: a module, or the path of its file")
    if os.pathsep in name:
        raise ValueError(f"plugin: {name} has a {os.pathsep!r} in it; allowed: a module, or a path without")
    path = Path(name).expanduser()
    is_file = path.suffix == ".py" or len(path.parts) > 1
    if is_file:
        if not path.is_file():
            raise ValueError(f"plugin: there is no file {name}; allowed: a module, or the path of its file")
        name = str(path.resolve())
    elif not _is_there(name):
        hint = f", such as {name}.py" if Path(f"{name}.py").is_file() else ""
        raise ValueError(f"plugin: there is no module {name}; allowed: a module, or the path of its file{hint}")
    try:
        _import_file(path.resolve()) if is_file else import_module(name)
    except RegistrationError as error:
        raise ValueError(f"plugin: {name}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever somebody's code raises
        where = _line_of(error, path.resolve() if is_file else name.partition(".")[0])
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"plugin: {name} cannot be imported ({reason}{where}); allowed: one that can be") from error
    if name not in named():
        os.environ[_VARIABLE] = os.pathsep.join([*named(), name])


def load_all() -> None:
    """Import the plugins that installed packages and the environment name; those that are imported stay as they are.

    Raises:
        ValueError: one of them cannot be imported.
    """
    for point in metadata.entry_points(group=_GROUP):
        try:
            load(point.value.partition(":")[0])
        except ValueError as error:
            package = point.dist.name if point.dist else "unknown"
            raise ValueError(f"{error} (it is named by the installed package {package})") from error
    for name in named():
        load(name)


def named() -> list[str]:
    """Return the plugins that ``--plugin`` and the environment name: modules, and absolute paths of files."""
    return [name for name in os.environ.get(_VARIABLE, "").split(os.pathsep) if name]


def flags() -> list[str]:
    """Return the words of a command line that load the same plugins."""
    return [word for name in named() for word in ("--plugin", name)]


def name_of(code: Code) -> str | None:
    """Return the name of the plugin that some code comes from; None for simsfl's own."""
    if code.registered is None:
        return None
    package, file = _place_of(code)
    return package if file is None or hasattr(sys.modules.get(package), "__path__") else file.name


def plugins_of(codes: Iterable[Code]) -> list[Plugin]:
    """Return the plugins that some code comes from, each once, in the order of their names.

    Two files may have the same name.
    """
    found = {_described(code) for code in _from_outside(codes)}
    return sorted(found, key=lambda plugin: (plugin.name, plugin.sha256))


def _from_outside(codes: Iterable[Code]) -> list[Code]:
    """Return those of some code that come from plugins, one for each package or file."""
    return list({_place_of(code): code for code in codes if code.registered is not None}.values())


def plugins_in(content: Any) -> list[Plugin]:
    """Return the plugins that the content of a ``config.json`` names; none if it is not as it should be."""
    try:
        return decode(list[Plugin], content.get("plugins", []) if isinstance(content, dict) else [])
    except ValueError:
        return []


def check(recorded: Iterable[Plugin]) -> None:
    """Raise a ValueError unless the plugins that a run uses are loaded; warn of those that have changed since.

    A plugin with the same source is the same one, whatever its file is called now.

    Args:
        recorded: the plugins as they were when the run began.
    """
    loaded = plugins_of(code_of(known) for door in DOORS.values() for known in door.values())
    missing = []
    for plugin in recorded:
        alike = [one for one in loaded if one.name == plugin.name or one.sha256 == plugin.sha256 != ""]
        if not alike:
            missing.append(f"{plugin.name} {plugin.version}" if plugin.version else plugin.name)
        elif plugin.sha256 not in {one.sha256 for one in alike} and plugin.name not in _warned:
            _warned.add(plugin.name)
            log.warning("the plugin %s is not the one that the run began with: its source has changed", plugin.name)
    if missing:
        are, each = ("are", "each module or file") if len(missing) > 1 else ("is", "its module or file")
        raise ValueError(
            f"plugin: the run uses {' and '.join(missing)}, which {are} not loaded; allowed: after --plugin with {each}"
        )


def _place_of(code: Code) -> tuple[str, Path | None]:
    """Return the package of a registered object, and the file of its module; None where its source is in no file."""
    module = sys.modules[code.registered.__module__]
    file = getattr(module, "__file__", None)
    return module.__name__.partition(".")[0], Path(file) if file else None


def _described(code: Code) -> Plugin:
    """Return the plugin that some code comes from, whose files are read."""
    package, file = _place_of(code)
    roots = getattr(sys.modules.get(package), "__path__", None)
    if roots is not None:
        files = sorted(one for root in roots for one in Path(root).rglob("*.py"))
    else:
        files = [file] if file else []
    name = name_of(code)
    assert name is not None  # it is registered
    return Plugin(name, _version_of(package), _sha256_of(files) if files else "")


def _is_there(name: str) -> bool:
    """Return whether there is a module of this name; the packages that it is in are imported."""
    try:
        return find_spec(name) is not None
    except Exception:  # whatever the package that it is in raises, or that it is no package: importing it says why
        first = name.partition(".")[0]
        return first in sys.modules or (first != name and _is_there(first))


def _import_file(path: Path) -> None:
    """Import a Python file, once, under the name of a module that is made from its path."""
    name = f"{_OF_FILE}{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _line_of(error: BaseException, plugin: Path | str) -> str:
    """Return the last line of a plugin that raised an error, as ", in line 3"; empty if that is not known.

    Args:
        error: the error.
        plugin: the plugin's file, or the name of its package or module, for which the line's file is returned, too.
    """
    if isinstance(error, SyntaxError) and error.lineno:
        return ""  # which the error says itself
    trace, where = error.__traceback__, ""
    while trace:
        frame = trace.tb_frame
        if frame.f_code.co_filename == str(plugin):
            where = f", in line {trace.tb_lineno}"
        elif str(frame.f_globals.get("__name__")).partition(".")[0] == plugin:
            where = f", in {frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where


def _version_of(package: str) -> str | None:
    """Return the version of a package or module, from its ``__version__`` or as it is installed.

    The distribution that installs it may have another name.
    """
    module: ModuleType | None = sys.modules.get(package)
    own = getattr(module, "__version__", None)
    if own is not None:
        return str(own)
    if package.startswith(_OF_FILE):
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        versions = {metadata.version(name) for name in _distributions_of(package)}
        return versions.pop() if len(versions) == 1 else None


def _distributions_of(package: str) -> list[str]:
    """Return the names of the distributions that install a package."""
    if named := metadata.packages_distributions().get(package):
        return named
    # Python 3.10 looks into no list of files
    having = (own for own in metadata.distributions() if any(file.parts[0] == package for file in own.files or ()))
    return [own.metadata["Name"] for own in having]


def _sha256_of(files: Iterable[Path]) -> str:
    """Return the SHA-256 of files, one after another."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()
