"""The cores that a process may use, on recordings of control groups."""

import os

import pytest

from simsfl.hw_profile.meters.board import Machine
from simsfl.hw_profile.meters.cores import check_threads, usable_cores
from tests.hw_profile.machines import write


@pytest.fixture
def pinned(monkeypatch):
    """A function that pins this process to some of eight cores."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def pin(*cores):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(cores), raising=False)

    pin(*range(8))
    return pin


def test_cores_are_those_that_the_process_is_pinned_to(tmp_path, pinned, monkeypatch):
    assert usable_cores(Machine(tmp_path)) == 8
    pinned(3, 5)
    assert usable_cores(Machine(tmp_path)) == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert usable_cores(Machine(tmp_path)) == 8


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "2000000 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"}, 8),
        ({"proc/self/cgroup": "0::/user/job\n", "sys/fs/cgroup/user/job/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
                "sys/fs/cgroup/user/cpu.max": "400000 100000\n",
            },
            4,
        ),
        ({"proc/self/cgroup": "0::/docker/0123\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "12:cpuset:/\n4:cpu,cpuacct:/docker/0123\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        ({"proc/self/cgroup": "", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 8),
    ],
)
def test_a_control_group_may_give_fewer(tmp_path, pinned, files, cores):
    write(tmp_path, files)
    assert usable_cores(Machine(tmp_path)) == cores


def test_more_threads_than_cores_are_refused(tmp_path, pinned):
    check_threads(8, Machine(tmp_path))
    with pytest.raises(
        ValueError, match=r"threads: 9 are more than the cores that this process may use; allowed: 1 to 8$"
    ):
        check_threads(9, Machine(tmp_path))
    pinned(6)
    with pytest.raises(ValueError, match=r"threads: 2 are more than .*; allowed: 1$"):
        check_threads(2, Machine(tmp_path))
    with pytest.raises(ValueError, match=r"threads: a number of .* bits are more"):
        check_threads(10**40, Machine(tmp_path))
