"""What is read from a machine, against recordings of several machines."""

import sys

import pytest

from simsfl.hw_profile.meters import board as boards
from simsfl.hw_profile.meters.board import Machine, board, model_of, temperature, throttling

CORE = "sys/devices/system/cpu/cpu0/cpufreq"
DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\n'


def machine_of(root, files, outputs=None):
    """Return a machine that has the given files, and commands with the given output."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    def run(command):
        if " ".join(command) not in (outputs or {}):
            raise FileNotFoundError(command[0])
        return outputs[" ".join(command)]

    return Machine(root, run)


@pytest.fixture
def _linux(monkeypatch):
    """Make this a Linux machine with four cores."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(boards.os, "cpu_count", lambda: 4)


@pytest.mark.usefixtures("_linux")
@pytest.mark.parametrize(
    ("model", "kilohertz", "flops"),
    [
        ("Raspberry Pi 4 Model B Rev 1.2", 1_500_000, 4 * 1.5e9 * 8),
        ("Raspberry Pi 4 Model B Rev 1.5", 1_800_000, 4 * 1.8e9 * 8),
        ("Raspberry Pi 5 Model B Rev 1.0", 2_400_000, 4 * 2.4e9 * 16),
    ],
)
def test_raspberry_pi(tmp_path, model, kilohertz, flops):
    files = {
        "proc/device-tree/model": f"{model}\0",
        "etc/os-release": DEBIAN,
        "proc/meminfo": "MemTotal:        8258096 kB\nMemFree:          100000 kB\n",
        f"{CORE}/scaling_governor": "ondemand\n",
        f"{CORE}/cpuinfo_max_freq": f"{kilohertz}\n",
    }
    found = board(machine_of(tmp_path, files))
    assert found.model == model
    assert found.os == "Debian GNU/Linux 12 (bookworm)"
    assert found.cores == 4
    assert found.memory_bytes == 8258096 * 1024
    assert found.governor == "ondemand"
    assert found.highest_hz == kilohertz * 1000
    assert found.nominal_flops == flops
    assert found.python == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.usefixtures("_linux")
def test_another_processor_has_no_nominal_peak(tmp_path):
    cpuinfo = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) N100\n\nmodel name\t: other\n"
    found = board(machine_of(tmp_path, {"proc/cpuinfo": cpuinfo, f"{CORE}/cpuinfo_max_freq": "3400000\n"}))
    assert found.model == "Intel(R) N100"
    assert found.nominal_flops is None


@pytest.mark.usefixtures("_linux")
def test_machine_that_says_nothing(tmp_path):
    machine = machine_of(tmp_path, {})
    found = board(machine)
    assert (found.memory_bytes, found.governor, found.highest_hz, found.nominal_flops) == (None, None, None, None)
    assert found.model == found.architecture
    assert temperature(machine) is None
    assert throttling(machine) is None


@pytest.mark.usefixtures("_linux")
@pytest.mark.parametrize("text", ["", "many", "MemTotal: many kB", "MemTotal:", "1.5"])
def test_files_that_hold_no_number_say_nothing(tmp_path, text):
    zone = "sys/class/thermal/thermal_zone0"
    files = {"proc/meminfo": text, f"{CORE}/cpuinfo_max_freq": text}
    files |= {f"{zone}/type": "cpu-thermal", f"{zone}/temp": text}
    machine = machine_of(tmp_path, files)
    found = board(machine)
    assert (found.memory_bytes, found.highest_hz, temperature(machine)) == (None, None, None)


def test_macos(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(boards.platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    outputs = {"sysctl -n machdep.cpu.brand_string": "Apple M2\n", "sysctl -n hw.memsize": "17179869184\n"}
    found = board(machine_of(tmp_path, {}, outputs))
    assert (found.model, found.os, found.memory_bytes) == ("Apple M2", "macOS 15.1", 16 * 2**30)
    assert (found.governor, found.highest_hz) == (None, None)


def test_model_ends_before_nul(tmp_path):
    machine = machine_of(tmp_path, {"proc/device-tree/model": "Radxa ROCK 5B\0"})
    assert model_of(machine) == "Radxa ROCK 5B"


def zones(*kinds):
    """Return the files of thermal zones, given the type and the temperature of each."""
    files = {}
    for number, (kind, degrees) in enumerate(kinds):
        zone = f"sys/class/thermal/thermal_zone{number}"
        files |= {f"{zone}/type": f"{kind}\n", f"{zone}/temp": f"{degrees}\n"}
    return files


@pytest.mark.parametrize(
    ("kinds", "degrees"),
    [
        ([("cpu-thermal", "48312")], 48.312),
        ([("acpitz", "27800"), ("iwlwifi_1", "39000"), ("x86_pkg_temp", "61000")], 61.0),
        ([("acpitz", "27800"), ("iwlwifi_1", "39000")], 27.8),
        ([("cpu-thermal", ""), ("acpitz", "-5000")], -5.0),
        ([("cpu-thermal", "40000"), ("cpu-thermal", "50000")], 40.0),
        ([("cpu-thermal", "hot")], None),
    ],
)
def test_temperature(tmp_path, kinds, degrees):
    assert temperature(machine_of(tmp_path, zones(*kinds))) == degrees


@pytest.mark.parametrize(
    ("output", "flags"),
    [
        ("throttled=0x0\n", []),
        ("throttled=0x50005\n", ["under-voltage", "throttled", "under-voltage since boot", "throttled since boot"]),
        ("throttled=0xa0000\n", ["frequency capped since boot", "soft temperature limit since boot"]),
        ("throttled=0xa\n", ["frequency capped", "soft temperature limit"]),
        ('error=1 error_msg="Command not registered"\n', None),
        ("throttled=0xZZ\n", None),
        ("0x50005\n", None),
    ],
)
def test_throttling(tmp_path, output, flags):
    assert throttling(machine_of(tmp_path, {}, {"vcgencmd get_throttled": output})) == flags


def test_commands_that_fail_or_print():
    assert Machine().output("true") == ""
    assert Machine().output("false") is None
    assert Machine().output("no-such-command-anywhere") is None
    assert Machine().output("echo", "it", "prints") == "it prints"
