"""The cores that this process may use, which may be fewer than the machine has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from simsfl.hw_profile.meters.board import Machine
from simsfl.system.messages import shortened


def usable_cores(machine: Machine) -> int:
    """Return the number of cores that this process may use.

    They are those that it is pinned to, as with ``taskset``, or fewer whole ones where the quota of its control group
    does not last for all of them, as with ``docker run --cpus``.
    """
    pinned = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([pinned, *_quotas(machine)])))


def check_threads(threads: int, machine: Machine) -> None:
    """Raise a ValueError if `threads` are more than the cores that this process may use."""
    cores = usable_cores(machine)
    if threads > cores:
        allowed = "1" if cores == 1 else f"1 to {cores}"
        raise ValueError(
            f"threads: {shortened(threads)} are more than the cores that this process may use; allowed: {allowed}"
        )


def _quotas(machine: Machine) -> Iterator[float]:
    """Yield the quotas of this process's control group and of the groups around it, in cores.

    A container may see its group at another path than the system outside, so each path is tried up to the root.
    """
    for line in (machine.text("proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        group = PurePosixPath(path.lstrip("/"))
        for place in (group, *group.parents):
            if not controllers:  # version 2
                yield from _quota(machine.text(f"sys/fs/cgroup/{place}/cpu.max"))
            elif "cpu" in controllers.split(","):
                for name in ("cpu", controllers):
                    base = f"sys/fs/cgroup/{name}/{place}/cpu.cfs_"
                    yield from _quota(f"{machine.text(f'{base}quota_us')} {machine.text(f'{base}period_us')}")


def _quota(text: str | None) -> Iterator[float]:
    """Yield the cores in ``QUOTA PERIOD``, two numbers of microseconds; nothing where there is no quota."""
    if found := re.fullmatch(r"(\d+) ([1-9]\d*)", text or ""):
        yield int(found[1]) / int(found[2])
