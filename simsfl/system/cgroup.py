"""Memory that a container's control groups leave (cgroup v1 and v2), which the rest of the system does not show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_FILES = {
    "cgroup2": ("memory.current", ("memory.max", "memory.high"), "inactive_file"),
    "cgroup": ("memory.usage_in_bytes", ("memory.limit_in_bytes",), "total_inactive_file"),
}
"""Names of the files with a group's usage and limits, and the entry of its cached files in memory.stat, by the type of
the file system."""
_NUMBER = re.compile("([0-9]{1,20})")
"""Pattern of a number of bytes, which has 64 bits."""
_MOUNT = re.compile(r"\S+ \S+ \S+ (?P<shown>\S+) (?P<point>\S+) .*?- (?P<kind>\S+) \S+ (?P<options>\S+)")
"""Pattern of a line of mountinfo; `shown` is the group that the mount point shows."""


def free_in_groups(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that the control groups of this process leave it; None where they set no limit.

    Every group above that of a process limits it, too, so this is the least over all of them. Files in the cache that
    are not in use count as free, since the kernel drops them first.

    Args:
        root: directory in which ``proc`` and ``sys`` lie.
    """
    left = [_left_by(group, *_FILES[kind]) for kind, group in _groups(root)]
    return min((free for free in left if free is not None), default=None)


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the type and directory of the control groups for memory that this process is in, and of those above."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if path and (not controllers or "memory" in controllers.split(",")):
            paths["cgroup" if controllers else "cgroup2"] = Path(path)
    for line in _lines(root / "proc/self/mountinfo"):
        found = _MOUNT.fullmatch(line)
        if not found or found["kind"] not in paths:
            continue
        kind, shown, point = found["kind"], _unescaped(found["shown"]), _unescaped(found["point"])
        if kind == "cgroup2" or "memory" in found["options"].split(","):
            top, path = root / point.lstrip("/"), paths[kind]
            below = path.is_relative_to(shown) and ".." not in path.parts
            group = top / path.relative_to(shown) if below else top
            yield from ((kind, one) for one in (group, *group.parents) if one.is_relative_to(top))


def _unescaped(path: str) -> str:
    """Return a path of mountinfo, in which blanks and some other characters are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _left_by(group: Path, usage: str, limits: tuple[str, ...], cached: str) -> int | None:
    """Return the bytes that one group leaves; None where it has no limit, which is written as "max" or not at all."""
    bounds = [bound for name in limits for bound in _numbers(group / name, _NUMBER)]
    used = sum(_numbers(group / usage, _NUMBER))
    inactive = sum(_numbers(group / "memory.stat", re.compile(rf"{cached} {_NUMBER.pattern}")))
    return max(0, min(bounds) - used + min(inactive, used)) if bounds else None


def _numbers(file: Path, pattern: re.Pattern[str]) -> list[int]:
    """Return the numbers in the lines of a file that are as a pattern says; other lines are passed over."""
    return [int(found[1]) for line in _lines(file) if (found := pattern.fullmatch(line))]


def _lines(file: Path) -> list[str]:
    """Return the lines of a file of the kernel; none where there is no such file."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
