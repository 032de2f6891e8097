"""INA219 and INA226: what the data sheets compute is shown, and what they call invalid is no reading."""

import sys
from types import SimpleNamespace

import pytest

from simsfl.hw_profile.meters import Blocked, Clipped, choose
from simsfl.hw_profile.meters.board import Machine
from simsfl.hw_profile.meters.ina import INA219, INA226
from tests.hw_profile.machines import Bus, no_command, raiser

R219 = {0: 0x399F, 1: 0x07D0, 2: 0x5D98}
"""SBOS448, the example of 10 A through 2 milliohm: 20 mV are 07D0h, 11.98 V are 5D98h."""
R226 = {0: 0x4127, 1: 0x1F40, 2: 0x2570, 6: 0x0000, 0xFE: 0x5449, 0xFF: 0x2260}
"""SBOS547, the same example: 20 mV are 1F40h, 11.98 V are 2570h."""


def ina219(rest="", **changes):
    return INA219(rest, Bus(0x40, changed(R219, changes)))


def ina226(rest="", **changes):
    return INA226(rest, Bus(0x40, changed(R226, changes)))


def changed(registers, changes):
    numbers = {"settings": 0, "shunt": 1, "bus": 2, "alerts": 6, "maker": 0xFE, "die": 0xFF}
    return registers | {numbers[name]: value for name, value in changes.items()}


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine that has nothing, not even a package for I2C."""
    monkeypatch.setitem(sys.modules, "smbus2", None)
    return Machine(tmp_path, no_command)


def with_bus(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "smbus2", SimpleNamespace(SMBus=make))


# --- what is shown


@pytest.mark.parametrize(("make", "twenty_millivolts"), [(ina219, 0x07D0), (ina226, 0x1F40)])
def test_power_is_as_the_data_sheets_compute(make, twenty_millivolts):
    assert make("0x40:0.002").watts() == pytest.approx(11.98 * 10)
    assert make().watts() == pytest.approx(11.98 * 0.02 / 0.1)
    assert make(shunt=0x10000 - twenty_millivolts).watts() == pytest.approx(-11.98 * 0.02 / 0.1)
    assert make(shunt=0).watts() == 0


def test_an_ina226_may_have_another_revision_and_average():
    assert ina226(die=0x2261, settings=0x4527).watts() == pytest.approx(11.98 * 0.2)
    registers = dict(R226)
    del registers[6]  # the flag of overflow is about the power that the chip itself computes
    assert INA226("", Bus(0x40, registers)).watts() == pytest.approx(11.98 * 0.2)


# --- which chip it is


@pytest.mark.parametrize(
    ("registers", "name"),
    [
        ({0: 0x6127, 1: 0x0320, 2: 0x0FF0, 0xFE: 0x5449, 0xFF: 0x2270}, "INA260"),
        ({0: 0x7127, 1: 0x0320, 2: 0x0FF0, 0xFE: 0x5449, 0xFF: 0x3220}, "INA3221"),
        ({0: 0x0000, 1: 0xFB68, 2: 0x1000, 0x3E: 0x5449, 0x3F: 0x2281}, "INA228"),
        ({0: 0x0000, 1: 0xFB68, 2: 0x1000, 0x3E: 0x5449, 0x3F: 0x2371}, "INA237"),
        ({0: 0x0000, 1: 0xFB68, 2: 0x1000, 0x3E: 0x5449, 0x3F: 0x2381}, "INA238"),
        ({0: 0x0000, 1: 0x0000, 2: 0x1000, 0xFE: 0x5449, 0xFF: 0x0067}, "die 0x0067 of the same maker"),
    ],
)
def test_another_chip_of_the_maker_is_named(registers, name):
    for meter, usual in ((INA226, R226), (INA219, R219)):
        with pytest.raises(
            Blocked, match=f"^what answers at 0x40 on I2C bus 1 is another chip, {name}, and only INA219"
        ):
            meter("", Bus(0x40, registers))
        meter("", Bus(0x40, usual))


@pytest.mark.parametrize(
    "registers",
    [
        R226,
        {0: 0x4127, 1: 0x1F40, 2: 0x2570},  # an INA231, which has no identity
        {0: 0x1111, 1: 0x0404, 2: 0xE2E2, 0xFE: 0x1E1E},  # a PCA9685, for servos
        {0: 0x399F, 1: 0, 2: 0},  # on no wire
    ],
)
def test_ina219_is_not_taken_for_another_chip(registers):
    with pytest.raises(ValueError, match="another chip"):
        INA219("", Bus(0x40, registers))


@pytest.mark.parametrize("identity", [{}, {0xFE: 0}, {0xFE: 0x5449}, {0xFE: 0xFFFF, 0xFF: 0x2260}])
def test_an_ina219_is_not_taken_for_an_ina226(identity):
    with pytest.raises(ValueError, match="another chip, perhaps one without an identity, such as an INA219"):
        INA226("", Bus(0x40, R219 | identity))


def test_silent_address():
    for meter, name in ((INA226, "ina226"), (INA219, "ina219")):
        with pytest.raises(ValueError, match=rf"no {name} answers at 0x45 on I2C bus 1 \(.*Remote I/O error\)"):
            meter("0x45", Bus(0x40, R226))


# --- a chip that does not measure


MODES = [
    (0, "power-down"),
    (1, "single"),
    (2, "single"),
    (3, "single"),
    (4, "power-down"),
    (5, "shunt"),
    (6, "voltage"),
]


@pytest.mark.parametrize(("mode", "words"), MODES)
@pytest.mark.parametrize(("make", "usual", "command"), [(ina219, 0x399F, "0x9f39"), (ina226, 0x4127, "0x2741")])
def test_a_chip_that_sleeps_says_how_it_is_woken(make, usual, command, mode, words):
    settings = usual & ~0b111 | mode
    with pytest.raises(
        Blocked, match=f"at 0x40 does not measure: its mode is {mode} .{words}.*i2cset -y 1 0x40 0 {command} w"
    ):
        make(settings=settings)
    meter = make()
    meter._bus.registers[0] = settings
    with pytest.raises(OSError, match=f"its mode is {mode}"):
        meter.watts()


def test_a_chip_without_a_voltage_does_not_measure():
    with pytest.raises(Blocked, match="it has no voltage, so the far end of its shunt may not be connected"):
        ina226(bus=0)
    for make in (ina219, ina226):
        meter = make()
        meter._bus.registers[2] = 0
        with pytest.raises(OSError, match="it has no voltage"):
            meter.watts()


def test_an_ina226_that_averages_for_longer_than_the_idle_machine_is_measured():
    with pytest.raises(Blocked, match=r"a reading takes 16\.9 s"):
        ina226(settings=0x4FFF)
    with pytest.raises(Blocked, match=r"a reading takes 2\.3 s"):
        ina226(settings=0x4F27)


# --- readings at the end of a range


@pytest.mark.parametrize(
    ("settings", "full_scale", "words"),
    [
        (0x399F, 32000, "320 mV or 3.2 A"),
        (0x319F, 16000, "160 mV or 1.6 A"),
        (0x299F, 8000, "80 mV or 0.8 A"),
        (0x219F, 4000, "40 mV or 0.4 A"),
    ],
)
def test_the_shunt_of_an_ina219_at_full_scale_is_no_reading(settings, full_scale, words):
    meter = ina219(settings=settings)
    for drop in (full_scale, -full_scale, 0x7FFF, -0x8000):
        meter._bus.registers[1] = drop & 0xFFFF
        with pytest.raises(Clipped, match=f"its shunt is at full scale, {words}"):
            meter.watts()
    for drop in (full_scale - 1, 1 - full_scale):
        meter._bus.registers[1] = drop & 0xFFFF
        assert meter.watts() == pytest.approx(11.98 * drop * 10e-6 / 0.1)


def test_the_shunt_of_an_ina226_at_full_scale_is_no_reading():
    for drop in (0x7FFF, 0x8000, 0x8001):
        with pytest.raises(Clipped, match="its shunt is at full scale"):
            ina226(shunt=drop).watts()
    assert ina226(shunt=0x7FFE).watts() == pytest.approx(11.98 * 0x7FFE * 2.5e-6 / 0.1)
    assert ina226(shunt=0x8300).watts() == pytest.approx(-11.98 * 0.8)


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (ina219, {"settings": 0x199F, "bus": 4000 << 3}, "end of its range, 16 V"),
        (ina219, {"bus": 6500 << 3}, "end of its range, 26 V"),
        (ina226, {"bus": 0x7FFF}, "end of its range, 36 V"),
        (ina219, {"bus": 0x5D99}, "overflow flag"),
        (ina226, {"alerts": 0x0004}, "overflow flag"),
    ],
)
def test_other_readings_beyond_the_range(make, changes, words):
    with pytest.raises(Clipped, match=words):
        make(**changes).watts()


def test_flags_that_say_nothing_of_overflow():
    assert ina219(bus=0x5D9A).watts() == pytest.approx(11.98 * 0.2)  # conversion ready
    assert ina226(alerts=0xFFFB).watts() == pytest.approx(11.98 * 0.2)


# --- address, bus, permission


@pytest.mark.parametrize(
    "rest", ["0x10", "forty", "0x40:0", "0x40:-1", "0x40:nan", "0x40:inf", "0x40:ohm", "0x40:0.1:2"]
)
def test_address_and_ohm_that_are_none(rest):
    with pytest.raises(ValueError, match=r"no address and resistance \(0x40 to 0x4f"):
        INA219(rest, Bus(0x40, {}))


def test_bus_is_number_1(monkeypatch, bare):
    opened = []
    bus = Bus(0x41, R219)
    with_bus(monkeypatch, lambda number: opened.append(number) or bus)
    assert choose("ina219:0x41:0.02", bare).watts() == pytest.approx(11.98)
    assert opened == [1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), r"group i2c \(sudo usermod -aG i2c \$USER, then log in again\)"),
        (FileNotFoundError(2, "No such file or directory"), "raspi-config"),
    ],
)
def test_bus_that_cannot_be_opened(monkeypatch, bare, error, words):
    with_bus(monkeypatch, raiser(error))
    with pytest.raises(ValueError, match=words) as raised:
        choose("ina226", bare)
    assert "\n" not in str(raised.value)


def test_smbus2_is_named(bare):
    with pytest.raises(ValueError, match=r"^meter: ina219 needs the package smbus2 .*pip install smbus2"):
        choose("ina219", bare)
