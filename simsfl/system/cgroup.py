"""Memory that a container's control groups leave (cgroup v1 and v2), which the rest of the system does not show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_FILES = {
    "cgroup2": ("memory.current", ("memory.max", "memory.high"), "inactive_file"),
    "cgroup": ("memory.usage_in_bytes", ("memory.limit_in_bytes",), "total_inactive_file"),
}
"""Names of the files with a group's usage and limits, and the entry of its cached files in memory.stat, by the type of
the file system."""


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
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = Path(path)
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, file_system = line.partition(" - ")
        kind, _, options = file_system.split(" ", 2)
        if kind in paths and (kind == "cgroup2" or "memory" in options.split(",")):
            _, _, _, shown, point, *_ = mount.split(" ")  # `shown` is the group that the mount point shows
            top, path = root / point.lstrip("/"), paths[kind]
            below = path.is_relative_to(shown) and ".." not in path.parts
            group = top / path.relative_to(shown) if below else top
            yield from ((kind, one) for one in (group, *group.parents) if one.is_relative_to(top))


def _left_by(group: Path, usage: str, limits: tuple[str, ...], cached: str) -> int | None:
    """Return the bytes that one group leaves; None where it has no limit, which is written as "max" or not at all."""
    bounds = [int(text) for name in limits for text in _lines(group / name) if text.isdecimal()]
    used = sum(map(int, _lines(group / usage)))
    statistics = dict(line.split() for line in _lines(group / "memory.stat"))
    return max(0, min(bounds) - used + int(statistics.get(cached, 0))) if bounds else None


def _lines(file: Path) -> list[str]:
    """Return the lines of a file of the kernel; none where there is no such file."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
