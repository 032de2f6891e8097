"""Power meters against recorded output, and energy against closed forms."""

import math
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from simsfl.hw_profile import meters
from simsfl.hw_profile.meters import Log, Sampler, choose, energy
from simsfl.hw_profile.meters.board import Machine
from simsfl.hw_profile.meters.estimate import UtilisationModel
from simsfl.hw_profile.meters.ina import INA219, INA226
from simsfl.hw_profile.meters.pmic import Pmic, rails
from simsfl.hw_profile.meters.rapl import Rapl

PI_5 = "Raspberry Pi 5 Model B Rev 1.0"
PMIC = """\
 3V7_WL_SW_A current(0)=0.09368929A
   3V3_SYS_A current(1)=0.08783370A
   1V8_SYS_A current(2)=0.18054710A
  DDR_VDD2_A current(3)=0.22543980A
  DDR_VDDQ_A current(4)=0.06666720A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.37670900A
  VDD_CORE_A current(7)=6.22421000A
   3V3_DAC_A current(17)=0.00006105A
   3V3_ADC_A current(18)=0.00036630A
   0V8_AON_A current(16)=0.00305250A
      HDMI_A current(22)=0.02417580A
 3V7_WL_SW_V volt(8)=3.69977600V
   3V3_SYS_V volt(9)=3.31003300V
   1V8_SYS_V volt(10)=1.80512600V
  DDR_VDD2_V volt(11)=1.10476100V
  DDR_VDDQ_V volt(12)=0.60146460V
   1V1_SYS_V volt(13)=1.11025500V
    0V8_SW_V volt(14)=0.80146440V
  VDD_CORE_V volt(15)=0.86173300V
   3V3_DAC_V volt(20)=3.31318300V
   3V3_ADC_V volt(21)=3.30677300V
   0V8_AON_V volt(19)=0.80029220V
      HDMI_V volt(23)=5.08664000V
     EXT5V_V volt(24)=5.09066000V
      BATT_V volt(25)=0.00000000V
"""
"""Of a Raspberry Pi 5 with four busy cores."""


def no_command(command):
    raise FileNotFoundError(f"no {command[0]}")


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


class Bus:
    """An I2C bus on which one chip answers, whose registers are written as data sheets have them."""

    def __init__(self, address, registers):
        self.address, self.registers = address, registers

    def read_word_data(self, address, register):
        if address != self.address or register not in self.registers:
            raise OSError(121, "Remote I/O error")
        return int.from_bytes(self.registers[register].to_bytes(2, "big"), "little")


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine that has nothing, not even a package for I2C."""
    monkeypatch.setitem(sys.modules, "smbus2", None)
    return Machine(tmp_path, no_command)


def with_bus(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "smbus2", SimpleNamespace(SMBus=make))


def raiser(error):
    def make(number):
        raise error

    return make


# --- the Raspberry Pi 5's own


def test_pmic_sums_rails_with_a_current_and_a_voltage():
    products = (
        0.09368929 * 3.699776,
        0.0878337 * 3.310033,
        0.1805471 * 1.805126,
        0.2254398 * 1.104761,
        0.0666672 * 0.6014646,
        0.1756674 * 1.110255,
        0.376709 * 0.8014644,
        6.22421 * 0.861733,
        0.00006105 * 3.313183,
        0.0003663 * 3.306773,
        0.0030525 * 0.8002922,
        0.0241758 * 5.08664,
    )
    assert rails(PMIC) == pytest.approx(sum(products))
    asked = []
    meter = Pmic(Machine(run=lambda command: asked.append(list(command)) or PMIC))
    assert meter.watts() == pytest.approx(1.1451 * sum(products) + 0.5879)
    assert asked[0] == ["vcgencmd", "pmic_read_adc"]
    assert "community" in meter.source
    assert not meter.estimated


def test_pmic_of_a_pi_4_says_that_there_is_none():
    machine = Machine(run=lambda command: 'error=1 error_msg="Command not registered"')
    with pytest.raises(ValueError, match="pmic is not here"):
        Pmic(machine)


# --- chips on I2C


def test_ina219_as_the_data_sheet_computes():
    """SBOS448, the example of 10 A through 2 milliohm: 20 mV are 07D0h, 11.98 V are 5D98h."""
    bus = Bus(0x40, {0: 0x399F, 1: 0x07D0, 2: 0x5D98})
    assert INA219("0x40:0.002", bus).watts() == pytest.approx(11.98 * 10)
    assert INA219("", bus).watts() == pytest.approx(11.98 * 0.02 / 0.1)


def test_ina219_has_a_sign():
    """SBOS448: -320 mV are 8300h."""
    assert INA219("", Bus(0x40, {0: 0x399F, 1: 0x8300, 2: 0x5D98})).watts() == pytest.approx(-11.98 * 3.2)


def test_ina226_as_the_data_sheet_computes():
    """SBOS547, the same example: 20 mV are 1F40h, 11.98 V are 2570h; -80 mV are 8300h."""
    registers = {0: 0x4127, 1: 0x1F40, 2: 0x2570, 0xFE: 0x5449}
    assert INA226("0x44:0.002", Bus(0x44, registers)).watts() == pytest.approx(11.98 * 10)
    assert INA226("0x44", Bus(0x44, registers | {1: 0x8300})).watts() == pytest.approx(-11.98 * 0.8)


@pytest.mark.parametrize(
    "registers",
    [
        {0: 0x4127, 1: 0x1F40, 2: 0x2570, 0xFE: 0x5449},  # an INA226
        {0: 0x1111, 1: 0x0404, 2: 0xE2E2},  # a PCA9685, for servos
        {0: 0x399F, 1: 0, 2: 0},  # on no wire
    ],
)
def test_ina219_is_not_taken_for_another_chip(registers):
    with pytest.raises(ValueError, match="another chip"):
        INA219("", Bus(0x40, registers))


def test_ina226_is_known_by_its_maker():
    with pytest.raises(ValueError, match="another chip"):
        INA226("", Bus(0x40, {0: 0x399F, 1: 0x07D0, 2: 0x5D98, 0xFE: 0}))


def test_silent_address():
    with pytest.raises(ValueError, match="no ina226 answers at 0x45 on I2C bus 1"):
        INA226("0x45", Bus(0x40, {0xFE: 0x5449}))


@pytest.mark.parametrize("rest", ["0x10", "forty", "0x40:0", "0x40:-1", "0x40:nan", "0x40:ohm", "0x40:0.1:2"])
def test_address_and_ohm_that_are_none(rest):
    with pytest.raises(ValueError, match=r"no address and resistance \(0x40 to 0x4f"):
        INA219(rest, Bus(0x40, {}))


def test_bus_is_number_1(monkeypatch, bare):
    opened = []
    bus = Bus(0x41, {0: 0x399F, 1: 0x07D0, 2: 0x5D98})
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


# --- x86 processors


def rapl_files(first, second):
    zones = {"intel-rapl:0": ("package-0", first), "intel-rapl:1": ("package-1", second)}
    zones |= {"intel-rapl:2": ("psys", 10**9), "intel-rapl:0:0": ("core", 10**9)}
    files = {}
    for zone, (name, microjoules) in zones.items():
        parts = {"name": f"{name}\n", "energy_uj": f"{microjoules}\n", "max_energy_range_uj": "262143328850\n"}
        files |= {f"sys/class/powercap/{zone}/{part}": content for part, content in parts.items()}
    return files


def test_rapl_sums_packages_and_wraps_around(tmp_path, monkeypatch):
    now = iter([100.0, 100.5, 102.5])
    monkeypatch.setattr("simsfl.hw_profile.meters.rapl.time", SimpleNamespace(monotonic=lambda: next(now)))
    write(tmp_path, rapl_files(1_000_000, 262_143_328_850 - 500_000))
    meter = Rapl(Machine(tmp_path))
    write(tmp_path, rapl_files(6_000_000, 1_500_000))
    assert meter.watts() == pytest.approx((5 + 2) / 0.5)
    write(tmp_path, rapl_files(7_000_000, 2_500_000))
    assert meter.watts() == pytest.approx(1)
    assert "packages alone" in meter.source


def test_rapl_that_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path, rapl_files(0, 0))
    read = Path.read_text

    def guarded(self, *arguments, **named):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(ValueError, match=r"sudo chmod a\+r /sys/class/powercap/intel-rapl:\*/energy_uj"):
        Rapl(Machine(tmp_path))


def test_no_rapl(tmp_path):
    with pytest.raises(ValueError, match="rapl is not here"):
        Rapl(Machine(tmp_path))


# --- estimated


def stat(user, idle, waiting):
    """Of a system with so many ticks; a guest's are among the user's already."""
    return f"cpu  {user} 20 30 {idle} {waiting} 5 5 0 {user} 0\ncpu0 1 2 3 4 5 6 7 8 9 0\nintr 5\n"


@pytest.mark.parametrize(
    ("model", "idle", "busy"),
    [("Raspberry Pi 4 Model B Rev 1.4", 2.286, 4.534), (PI_5, 4.403, 3.458)],
)
def test_model_is_a_line_over_utilisation(tmp_path, model, idle, busy):
    write(tmp_path, {"proc/device-tree/model": f"{model}\0", "proc/stat": stat(100, 1000, 50)})
    meter = UtilisationModel(Machine(tmp_path))
    assert meter.estimated
    assert "not measured" in meter.source
    write(tmp_path, {"proc/stat": stat(130, 1060, 60)})
    assert meter.watts() == pytest.approx(idle + busy * 0.3)
    write(tmp_path, {"proc/stat": stat(180, 1060, 60)})
    assert meter.watts() == pytest.approx(idle + busy)


@pytest.mark.parametrize("model", ["Raspberry Pi 400 Rev 1.0", "Raspberry Pi 3 Model B Plus Rev 1.3", "Radxa ROCK 5B"])
def test_model_of_another_board(tmp_path, model):
    write(tmp_path, {"proc/device-tree/model": f"{model}\0", "proc/stat": stat(1, 1, 1)})
    with pytest.raises(ValueError, match=f"model knows Raspberry Pi 4 .*, not {model}"):
        UtilisationModel(Machine(tmp_path))


# --- logs

BEGIN = 1_795_694_400.0
"""2026-11-26 12:00:00 UTC."""
LOCAL = [datetime.fromtimestamp(BEGIN + second).strftime("%Y-%m-%d %H:%M:%S") for second in (0, 1)]


@pytest.mark.parametrize(
    "text",
    [
        "time,power\n1795694400,5.5\n1795694401,6\n",
        "Timestamp;Power [W]\n1795694400,0;5,5\n1795694401,0;6,0\n",
        "timestamp\tpower(mW)\n1795694400000\t5500\n1795694401000\t6000\n",
        "Date,Volts,Amps\n2026-11-26T12:00:00Z,5,1.1\n2026-11-26T12:00:01Z,5,1.2\n",
        "time_ms,voltage_mV,current_mA,energy_Wh\n1795694400000,5000,1100,1\n1795694401000,5000,1200,1\n",
        'time,mA,mV,Ws,VA\n2026/11/26 13:00:00.0+0100,1100,5000,9,9\n"2026-11-26 12:00:01,00Z","1200",5000,9,9\n',
        "\ufeffU (V),I (A),Date Time\r\n5,1.1,2026-11-26 07:00:00-05:00\r\n\r\n5,1.2,2026-11-26 07:00:01-05:00\r\n",
        f"date time,W\n{LOCAL[1]},6\n{LOCAL[0]},5.5\n",
        "Epoch,v,a,w\n1795694400,1,1,5.5\n1795694401,1,1,6\n",
    ],
)
def test_log_dialects(tmp_path, text):
    write(tmp_path, {"log.csv": text})
    log = choose(f"csv:{tmp_path / 'log.csv'}", Machine(tmp_path))
    assert isinstance(log, Log)
    found = log.readings((BEGIN, BEGIN + 1))
    assert [at for at, _ in found] == [BEGIN, BEGIN + 1]
    assert [watts for _, watts in found] == pytest.approx([5.5, 6])


def test_log_has_fractions_of_seconds(tmp_path):
    write(tmp_path, {"log.csv": "time,w\n2026-11-26 12:00:00.5Z,1\n2026-11-26T12:00:00.1234567Z,2\n1795694400.75,3\n"})
    found = Log(str(tmp_path / "log.csv")).readings((BEGIN, BEGIN + 1))
    assert [at - BEGIN for at, _ in found] == pytest.approx([0.1234567, 0.5, 0.75], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"has columns \(none\); allowed: time, and power"),
        ("time,Ws,VA\n1,2,3\n", "has columns time, Ws, VA; allowed"),
        ("time,voltage [V]\n1,2\n", "has columns"),
        ("seconds since start,power\n1,2\n", "has columns"),
        ("time,power\n", "has no readings"),
        ("time,power\n1795694400,nan\n", "line 2: 'nan' is no reading"),
        ("time,power\n1795694400,5\n1795694401,five\n", "line 3: could not convert"),
        ("time,power\n1795694400,5\n17956944\n", "line 3: list index"),
        ("time,power\n26.11.2026 12:00:00,5\n", "line 2: '26.11.2026 12:00:00' is no time"),
        ("time,power\n2026-13-26 12:00:00,5\n", "line 2: time data"),
    ],
)
def test_log_that_is_none(tmp_path, text, words):
    write(tmp_path, {"log.csv": text})
    with pytest.raises(ValueError, match=words) as raised:
        Log(str(tmp_path / "log.csv")).readings((BEGIN, BEGIN + 1))
    assert str(raised.value).startswith("meter: ")
    assert "allowed: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_log_that_is_no_text(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="cannot be read"):
        Log(str(tmp_path / "log.csv")).readings((BEGIN, BEGIN + 1))


def test_log_of_another_time_says_both(tmp_path):
    write(tmp_path, {"log.csv": "time,power\n1795694400,5\n1795694401,5\n"})
    begin, end = (
        datetime.fromtimestamp(BEGIN + after, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        for after in (3600, 3660)
    )
    with pytest.raises(ValueError, match=f"is of {LOCAL[0]} to {LOCAL[1]}, and the run was {begin} to {end}"):
        Log(str(tmp_path / "log.csv")).readings((BEGIN + 3600, BEGIN + 3660))


@pytest.mark.parametrize("spec", ["csv", "csv:", "csv:nowhere.csv"])
def test_log_that_is_not_there(spec, bare):
    with pytest.raises(ValueError, match=r"meter: there is no log .*allowed: csv:FILE"):
        choose(spec, bare)


# --- which meter


def test_none_and_nothing(bare):
    assert choose("none", bare) is None
    assert choose("auto", bare) is None


def test_auto_takes_the_best(bare, tmp_path, monkeypatch):
    write(tmp_path, {"proc/device-tree/model": f"{PI_5}\0", "proc/stat": stat(1, 1, 1)})
    assert choose("auto", bare).name == "model"
    write(tmp_path, rapl_files(0, 0))
    assert choose("auto", bare).name == "rapl"
    with_bus(monkeypatch, lambda number: Bus(0x40, {0: 0x399F, 1: 0x07D0, 2: 0x5D98}))
    assert choose("auto", bare).name == "ina219"
    with_bus(monkeypatch, lambda number: Bus(0x40, {0: 0x4127, 1: 0x1F40, 2: 0x2570, 0xFE: 0x5449}))
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
    with pytest.raises(ValueError, match="rapl takes nothing behind a colon"):
        choose("rapl:0", bare)


# --- reading it on and on


class Failing:
    """A meter of which every other reading fails."""

    name, source, uncertainty, estimated = "failing", "a test", 0.1, False

    def __init__(self):
        self.calls = 0

    def watts(self):
        self.calls += 1
        if self.calls % 2 == 0:
            raise OSError(f"no reading {self.calls}")
        return float(self.calls)


def until(over):
    """Wait until it is so, at most for a time that no machine should take."""
    deadline = time.monotonic() + 30
    while not over() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert over()


def test_sampler_survives_failures(monkeypatch):
    monkeypatch.setattr(meters, "SECONDS", 0.001)
    meter, seen, begin = Failing(), [], time.time()
    with Sampler(meter, lambda: seen.append(1)) as sampler:
        until(lambda: meter.calls >= 6)
    assert len(sampler.readings) + sampler.failures == meter.calls == len(seen)
    assert sampler.failures == meter.calls // 2
    assert sampler.last_error == f"no reading {meter.calls - meter.calls % 2}"
    assert [watts for _, watts in sampler.readings[:3]] == [1, 3, 5]
    times = [at for at, _ in sampler.readings]
    assert times == sorted(times)
    assert begin <= times[0]
    assert times[-1] <= time.time()
    assert sampler.latest[-1] == sampler.readings[-1][1]


def test_sampler_without_a_meter(monkeypatch):
    monkeypatch.setattr(meters, "SECONDS", 0.001)
    seen = []
    with Sampler(None, lambda: seen.append(1)) as sampler:
        until(lambda: len(seen) >= 2)
    assert (sampler.readings, sampler.failures) == ([], 0)


# --- energy

SPANS = ((0.0, 4.0), (5.0, 15.0), (16.0, 20.0))


def test_energy_of_constant_power():
    readings = [(at / 10, 7.0 if 5 <= at / 10 <= 15 else 3.0) for at in range(201)]
    found = energy(readings, *SPANS, uncertainty=0.05)
    assert found.seconds == 10
    assert found.joules == pytest.approx(70)
    assert found.mean_watts == pytest.approx(7)
    assert (found.idle_before, found.idle_after) == pytest.approx((3, 3))
    assert found.above_idle_watts == pytest.approx(4)
    assert found.joules_above_idle == pytest.approx(40)
    assert found.uncertainty_joules_above_idle == pytest.approx(3.5)
    assert found.readings == 101


def test_energy_of_a_ramp_is_exact_between_readings():
    """The trapezoid rule is exact for it, wherever the spans end and however the readings lie."""
    times = (0.0, 0.7, 1.9, 3.3, 4.6, 6.1, 8.4, 11.0, 13.7, 15.2, 16.3, 18.8, 20.0)
    found = energy([(at, 2 + 0.5 * at) for at in times], *SPANS, uncertainty=0.02)
    assert (found.idle_before, found.idle_after) == pytest.approx((3, 11))
    assert found.mean_watts == pytest.approx(7)
    assert found.joules == pytest.approx(70)
    assert found.joules_above_idle == pytest.approx(0, abs=1e-9)
    assert found.uncertainty_joules_above_idle == pytest.approx(math.hypot(0.02 * 70, (11 - 3) / 2 * 10))


@pytest.mark.parametrize(("missing", "word"), [(0, "before"), (1, "during"), (2, "after")])
def test_too_few_readings(missing, word):
    begin, end = SPANS[missing]
    readings = [(at / 2, 1.0) for at in range(41) if not begin + 0.5 <= at / 2 <= end]
    with pytest.raises(ValueError, match=f"meter: 1 readings {word} the work"):
        energy(readings, *SPANS, uncertainty=0.1)


def test_no_readings():
    with pytest.raises(ValueError, match="meter: 0 readings before"):
        energy([], *SPANS, uncertainty=0.1)
