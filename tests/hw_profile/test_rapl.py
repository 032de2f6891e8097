"""Energy counters of x86 processors, as files of a made-up machine on a made-up clock."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from simsfl.hw_profile.meters import Blocked
from simsfl.hw_profile.meters.board import Machine
from simsfl.hw_profile.meters.rapl import Rapl
from tests.hw_profile.machines import rapl_files, write

HIGHEST = 262_143_328_850
FIRST, SECOND = (f"sys/class/powercap/intel-rapl:{index}/energy_uj" for index in (0, 1))


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A function that sets counters to some values, then to others after some seconds each, and lists the readings."""

    def follow(first, *steps):
        clock = [100.0]
        monkeypatch.setattr("simsfl.hw_profile.meters.rapl.time", SimpleNamespace(monotonic=lambda: clock[0]))
        shutil.rmtree(tmp_path / "sys", ignore_errors=True)
        write(tmp_path, rapl_files(*first))
        meter, found = Rapl(Machine(tmp_path)), []
        for seconds, counters in steps:
            clock[0] += seconds
            write(tmp_path, rapl_files(*counters))
            try:
                found.append(meter.watts())
            except OSError as error:
                found.append(str(error))
        return found

    return follow


def test_packages_are_summed_and_wrap_around(read):
    begin = (1_000_000, HIGHEST - 500_000)
    assert read(begin, (0.5, (6_000_000, 1_500_000)), (2.0, (7_000_000, 2_500_000))) == [(5 + 2) / 0.5, 1]
    assert read((HIGHEST - 1,), (1.0, (4_999_999,))) == [5]
    assert read((0,), (1.0, (5_000_000,))) == [5]
    assert read((0,) * 12, (1.0, (5_000_000,) * 12)) == [60]


def test_a_counter_that_stands_still_is_no_reading(read):
    still = "the counter of package-0 stands still"
    steps = [(0.1, (7,)), (0.1, (7,)), (0.1, (600_007,))]
    assert read((7,), *steps) == [still, still, pytest.approx(2.0)]  # the mean since the last reading
    steps = [(0.5, (1_000_000, 7)), (0.5, (3_000_000, 2_000_007))]
    assert read((0, 7), *steps) == ["the counter of package-1 stands still", pytest.approx(5.0)]


@pytest.mark.parametrize("after", [0, 1, 50_000_000_000, 99_999_999_999])
def test_a_counter_that_is_reset_is_no_reading(read, after):
    steps = [(0.1, (after,)), (0.5, (after + 2_000_000,))]
    assert read((100_000_000_000,), *steps) == ["the counter of package-0 was reset", pytest.approx(4.0)]


def test_a_counter_that_jumps_ahead_is_no_reading(read):
    steps = [(0.1, (100_000_000_000, 200_000)), (0.5, (100_001_000_000, 1_200_000))]
    assert read((0, 0), *steps) == ["the counter of package-0 was reset", pytest.approx(4.0)]


def test_a_range_of_zero_makes_no_power(tmp_path):
    write(tmp_path, rapl_files(9) | {FIRST.replace("energy_uj", "max_energy_range_uj"): "0\n"})
    meter = Rapl(Machine(tmp_path))
    write(tmp_path, {FIRST: "5\n"})
    with pytest.raises(OSError, match="was reset"):
        meter.watts()


@pytest.mark.parametrize("content", ["", "many", "1.5"])
def test_files_without_a_number(tmp_path, content):
    write(tmp_path, rapl_files(1))
    meter = Rapl(Machine(tmp_path))
    write(tmp_path, {FIRST: content})
    with pytest.raises(OSError, match="energy_uj holds no number"):
        meter.watts()
    with pytest.raises(ValueError, match=r"rapl is not here .*holds no number"):
        Rapl(Machine(tmp_path))


def test_a_package_that_vanishes_is_no_reading(tmp_path):
    write(tmp_path, rapl_files(1, 1))
    meter = Rapl(Machine(tmp_path))
    (tmp_path / SECOND).unlink()
    with pytest.raises(FileNotFoundError):
        meter.watts()


def test_counters_that_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path, rapl_files(0, 0))
    read = Path.read_text

    def guarded(self, *arguments, **named):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(Blocked, match=r"sudo chmod a\+r /sys/class/powercap/intel-rapl:\*/energy_uj"):
        Rapl(Machine(tmp_path))


def test_no_counters(tmp_path):
    with pytest.raises(ValueError, match="rapl is not here"):
        Rapl(Machine(tmp_path))
