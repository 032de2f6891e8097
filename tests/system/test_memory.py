"""Memory that is free: on Linux, on macOS, and in containers, whose files are made up here."""

import os
from pathlib import Path

import pytest

from simsfl.system.memory import free_memory, resident_bytes

GB = 10**9
MEMINFO = "MemTotal: 16000000 kB\nMemFree: 500000 kB\nMemAvailable: 8000000 kB\n"
VM_STAT = """#!/bin/sh
cat <<END
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                10000.
Pages active:                             300000.
Pages inactive:                            20000.
Pages speculative:                          3000.
Pages wired down:                         100000.
Pages purgeable:                            7000.
"Translation faults":                  123456789.
END
"""
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 {shown} /sys/fs/cgroup/memory rw shared:9 master:2 - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def system(root, **files):
    """Write the files of a system into a directory, by their paths with two underscores for each slash."""
    for name, content in {"proc__meminfo": MEMINFO, **files}.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def group(root, path, used, cached=0, **files):
    """Write the files of a control group of version 2, or of version 1 where its limit is called so."""
    first = "limit_in_bytes" in files
    directory = root / path
    directory.mkdir(parents=True, exist_ok=True)
    files[("usage_in_bytes" if first else "current")] = used
    for name, value in files.items():
        (directory / f"memory.{name}").write_text(f"{value}\n")
    inactive = f"inactive_file {cached}\n" if not first else f"inactive_file 1\ntotal_inactive_file {cached}\n"
    (directory / "memory.stat").write_text(f"anon 5\n{inactive}active_file 7\n")


def test_a_machine_without_groups(tmp_path):
    assert free_memory(system(tmp_path)) == 8_192_000_000


@pytest.mark.parametrize(
    ("limits", "free"),
    [
        ({"max": 950_000_000}, 950_000_000 - 300_000_000 + 100_000_000),
        ({"max": "max"}, 8_192_000_000),
        ({"max": "max", "high": GB}, GB - 200_000_000),
        ({"max": 200_000_000}, 0),
        ({"max": 100 * GB}, 8_192_000_000),
        ({}, 8_192_000_000),
    ],
)
def test_a_container_of_version_2(tmp_path, limits, free):
    """Its group is the topmost that it sees."""
    system(tmp_path, proc__self__cgroup="0::/\n", proc__self__mountinfo=V2)
    group(tmp_path, "sys/fs/cgroup", 300_000_000, 100_000_000, **limits)
    assert free_memory(tmp_path) == free


def test_the_least_of_all_groups_above_counts(tmp_path):
    system(tmp_path, proc__self__cgroup="0::/user.slice/job/step\n", proc__self__mountinfo=V2)
    top = "sys/fs/cgroup/user.slice"
    group(tmp_path, top, 5 * GB, max=9 * GB)
    group(tmp_path, f"{top}/job", 3 * GB, GB, max=4 * GB)
    group(tmp_path, f"{top}/job/step", GB, max="max")
    group(tmp_path, f"{top}/other", 0, max=1000)
    assert free_memory(tmp_path) == 2 * GB
    group(tmp_path, f"{top}/job/step", GB, max=2 * GB)
    assert free_memory(tmp_path) == GB


@pytest.mark.parametrize(
    ("path", "shown", "directory"),
    [
        ("/job", "/", "job"),
        ("/docker/0123", "/docker/0123", ""),  # without a namespace, the path is that of the host
        ("/docker/0123/inner", "/docker/0123", "inner"),
        ("/docker/0123", "/", ""),
        ("/../../elsewhere", "/", ""),
    ],
)
def test_groups_of_version_1(tmp_path, path, shown, directory):
    joined = f"9:name=systemd:/x\n7:cpu,cpuacct:/y\n4:memory:{path}\n0::/z\n"
    system(tmp_path, proc__self__cgroup=joined, proc__self__mountinfo=V1.format(shown=shown))
    top = "sys/fs/cgroup/memory"
    group(tmp_path, top, 7 * GB, limit_in_bytes=9223372036854771712)
    group(tmp_path, f"{top}/{directory}", 2 * GB, GB, limit_in_bytes=3 * GB)
    assert free_memory(tmp_path) == 2 * GB


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"sys__fs__cgroup__memory.current": "many\n"}, GB),
        ({"sys__fs__cgroup__memory.stat": "inactive_file\n\na b c\ninactive_file many\n"}, GB - 100),
        ({"sys__fs__cgroup__memory.stat": "inactive_file 1000\n"}, GB),
        ({"sys__fs__cgroup__memory.max": "9" * 5000 + "\n"}, 8_192_000_000),
        ({"sys__fs__cgroup__memory.max": "\0\n"}, 8_192_000_000),
        ({"proc__self__cgroup": "no colon\n0::/\n"}, GB - 100),
        ({"proc__self__cgroup": "no colon\n"}, 8_192_000_000),
        ({"proc__self__mountinfo": f"\nodd\n31 23 - cgroup2 cgroup2\n{V2}"}, GB - 100),
        ({"proc__self__mountinfo": V2.replace("cgroup rw", r"a\040b rw"), "sys__fs__a b__memory.max": "7\n"}, 7),
    ],
)
def test_files_of_groups_that_are_odd_or_missing(tmp_path, files, free):
    usual = {"sys__fs__cgroup__memory.max": f"{GB}\n", "sys__fs__cgroup__memory.current": "100\n"}
    usual |= {"proc__self__cgroup": "0::/\n", "proc__self__mountinfo": V2}
    assert free_memory(system(tmp_path, **usual | files)) == free


def test_macos(tmp_path, monkeypatch):
    """It has no /proc, and does not know SC_AVPHYS_PAGES."""
    (tmp_path / "vm_stat").write_text(VM_STAT)
    (tmp_path / "vm_stat").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert free_memory(tmp_path) == 33_000 * 16384


def test_a_system_that_does_not_say(tmp_path, monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert free_memory(tmp_path) == 4 << 30


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is compared with Linux's")
def test_memory_in_use_without_proc(tmp_path):
    assert resident_bytes(tmp_path) == pytest.approx(resident_bytes(), rel=0.05)
