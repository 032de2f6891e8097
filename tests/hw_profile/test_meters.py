"""Which meter is taken, what is said of those that are not, and what a measurement is accounted as."""

import logging
import sys
from types import SimpleNamespace

import pytest

from simsfl.hw_profile.meters import Log, Record, absent, account, choose
from simsfl.hw_profile.meters.board import Machine
from tests.hw_profile.machines import PI_4, PI_5, Bus, no_command, raiser, rapl_files, stat, write
from tests.hw_profile.test_ina import R219, R226, with_bus
from tests.hw_profile.test_pmic import PMIC

SPANS = ((1000.0, 1004.0), (1005.0, 1015.0), (1016.0, 1020.0))
METER = SimpleNamespace(name="ina219", source="a chip", uncertainty=0.02, estimated=False)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine that has nothing, not even a package for I2C."""
    monkeypatch.setitem(sys.modules, "smbus2", None)
    return Machine(tmp_path, no_command)


# --- which meter


def test_none_and_nothing(bare, caplog):
    assert choose("none", bare) is None
    assert choose("auto", bare) is None
    assert not caplog.records


def test_auto_takes_the_best(bare, tmp_path, monkeypatch):
    write(tmp_path, {"proc/device-tree/model": f"{PI_4}\0", "proc/stat": stat(1, 1, 1)})
    assert choose("auto", bare).name == "model"
    write(tmp_path, rapl_files(0, 0))
    assert choose("auto", bare).name == "rapl"
    with_bus(monkeypatch, lambda number: Bus(0x40, R219))
    assert choose("auto", bare).name == "ina219"
    with_bus(monkeypatch, lambda number: Bus(0x40, R226))
    assert choose("auto", bare).name == "ina226"
    assert choose("auto", Machine(tmp_path, lambda command: PMIC)).name == "pmic"


def test_meter_that_is_not_here_names_those_that_are(bare, tmp_path):
    write(tmp_path, rapl_files(0, 0))
    with pytest.raises(ValueError, match=r"^meter: pmic is not here \(.*\); .*: rapl, csv:FILE, none$"):
        choose("pmic", bare)


@pytest.mark.parametrize("name", ["pmic", "ina226", "ina219", "rapl", "model"])
def test_every_refusal_is_one_line_of_meter(name, bare):
    with pytest.raises(ValueError, match=r"^meter: ") as raised:
        choose(name, bare)
    assert "\n" not in str(raised.value)


def test_unknown_meter(bare):
    with pytest.raises(ValueError, match=r"^meter: 'pmc' is not known .*pmic\?\); allowed: auto, csv:FILE, none$"):
        choose("pmc", bare)
    with pytest.raises(ValueError, match="rapl takes nothing after a colon"):
        choose("rapl:0", bare)
    with pytest.raises(ValueError, match="meter: none takes nothing after a colon; allowed: none"):
        choose("none:0", bare)


# --- a better meter that the user could have


@pytest.mark.parametrize(
    ("model", "run", "words"),
    [
        (PI_5, raiser(OSError("Can't open device file: /dev/vcio")), "sudo usermod -aG video $USER"),
        (PI_5, no_command, "sudo apt install raspi-utils"),
        (PI_4, no_command, None),
    ],
)
def test_an_estimate_says_which_better_meter_there_may_be(bare, tmp_path, caplog, model, run, words):
    write(tmp_path, {"proc/device-tree/model": f"{model}\0", "proc/stat": stat(1, 1, 1)})
    assert choose("auto", Machine(tmp_path, run)).name == "model"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * (words is not None)
    for record in caplog.records:
        assert words in record.getMessage()
        assert record.getMessage().startswith("power is only estimated, although there may be a better meter: pmic ")
        assert "\n" not in record.getMessage()
    caplog.clear()
    assert choose("model", Machine(tmp_path, run)).name == "model"  # as asked for
    assert not caplog.records


def test_a_chip_that_sleeps_is_a_better_meter(bare, tmp_path, caplog, monkeypatch):
    write(tmp_path, {"proc/device-tree/model": f"{PI_4}\0", "proc/stat": stat(1, 1, 1)})
    with_bus(monkeypatch, lambda number: Bus(0x40, R219 | {0: 0x3998}))
    assert choose("auto", bare).name == "model"
    (record,) = caplog.records
    assert "ina219 at 0x40 does not measure: its mode is 0 (power-down)" in record.getMessage()


def test_no_permission_is_said_once(bare, tmp_path, caplog, monkeypatch):
    write(tmp_path, {"proc/device-tree/model": f"{PI_4}\0", "proc/stat": stat(1, 1, 1)})
    with_bus(monkeypatch, raiser(PermissionError(13, "Permission denied")))
    assert choose("auto", bare).name == "model"
    (record,) = caplog.records
    assert record.getMessage().count("no permission on /dev/i2c-1") == 1


def test_a_chip_that_cannot_be_read_is_named_where_no_meter_is_found(bare, monkeypatch):
    with_bus(monkeypatch, lambda number: Bus(0x40, {0: 0x6127, 1: 0x0320, 2: 0x0FF0, 0xFE: 0x5449, 0xFF: 0x2270}))
    assert choose("auto", bare) is None
    chip = "what answers at 0x40 on I2C bus 1 is another chip, INA260, and only INA219 and INA226 are read"
    assert absent(bare) == f"no meter found; {chip}"


# --- what a measurement is accounted as


def readings(watts=5.0):
    return [(1000 + at / 10, watts) for at in range(201)]


def test_a_current_that_changes_sign_is_shown_with_a_warning():
    positive, _ = account(METER, Record(readings()), SPANS)
    assert (positive["warning"], positive["below_zero"]) == ("", 0)
    negative, shown = account(METER, Record(readings(-5.0)), SPANS)
    assert negative["mean_watts"] == pytest.approx(-5)
    assert {watts for _, watts in shown} == {-5.0}
    assert negative["warning"].startswith("201 readings below 0 W: VIN+ and VIN- may be swapped")
    mixed, _ = account(METER, Record([*readings()[:100], (1010.0, -0.5), *readings()[101:]]), SPANS)
    assert mixed["warning"].startswith("1 reading below 0 W")


def test_one_reading_beyond_the_range_leaves_no_figure():
    inside = Record(readings(), clipped=[(1001.0, "at full scale")], failures=1, last_error="another")
    with pytest.raises(
        ValueError, match=r"meter: 1 reading of ina219 beyond its range \(at full scale\), .*smaller shunt"
    ):
        account(METER, inside, SPANS)
    outside = Record(readings(), clipped=[(900.0, "at full scale"), (1020.5, "at full scale")], failures=2)
    assert account(METER, outside, SPANS)[0]["failed_readings"] == 2


def test_a_chip_that_falls_asleep_is_named():
    record = Record(readings()[:80], failures=120, last_error="its mode is 0 (power-down)")
    with pytest.raises(
        ValueError, match=r"meter: 120 readings of ina219 failed \(its mode is 0 .*no reading for 7\.1 s during"
    ):
        account(METER, record, SPANS)


@pytest.mark.parametrize(("moved", "refused"), [(0.0, False), (0.05, False), (37.0, True), (-3600.0, True)])
def test_a_log_cannot_be_compared_with_a_clock_that_was_set(tmp_path, moved, refused):
    file = tmp_path / "log.csv"
    file.write_text("time,power\n" + "".join(f"{at},4\n" for at in range(990, 1030)))
    record = Record(clock_moved=moved)
    if not refused:
        assert account(Log(str(file)), record, SPANS)[0]["mean_watts"] == pytest.approx(4)
        return
    with pytest.raises(ValueError, match=rf"this machine's clock was set by \{moved:+.1f} s during the measurement"):
        account(Log(str(file)), record, SPANS)
    assert account(METER, Record(readings(), clock_moved=moved), SPANS)[0]["mean_watts"] == pytest.approx(5)


@pytest.mark.parametrize(("watts", "words"), [(0.0, "no reading but 0 W"), (2e5, "a reading of 200000 W")])
def test_readings_that_are_of_no_computer_give_no_figures(watts, words):
    with pytest.raises(ValueError, match=f"^meter: ina219 has {words}; allowed: a meter in the supply line"):
        account(METER, Record(readings=[(1000 + at / 10, watts) for at in range(201)]), SPANS)
