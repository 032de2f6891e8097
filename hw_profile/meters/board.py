"""What machine this is, and how it fares: read from the system's files and commands, never guessed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

THROTTLING = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Bits of ``vcgencmd get_throttled``: as it is now; 16 higher, as it has been since boot."""
SINCE_BOOT = 16
SENSORS = ("cpu-thermal", "x86_pkg_temp", "soc-thermal")
"""Kinds of thermal zones that are a processor's, best first."""
CYCLE_FLOPS = {"Raspberry Pi 4": 8, "Raspberry Pi 5": 16}
"""Floating-point operations in fp32 of a core in a cycle: of a Cortex-A72, one multiply-add of four numbers; of an A76,
two (Arm's optimisation guides)."""


def run(command: Sequence[str]) -> str:
    """What a command prints.

    Raises:
        OSError: it is not there, fails, or hangs.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise OSError(f"{command[0]}: {error}") from error


@dataclass(frozen=True)
class Machine:
    """Access to the system, so that what reads it can be tested on recordings."""

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str] = run

    def text(self, path: str) -> str | None:
        """The content of a file, without blanks and NULs around it; None if it cannot be read."""
        with suppress(OSError, UnicodeDecodeError):
            return (self.root / path).read_text(encoding="utf-8").strip("\0 \n")
        return None

    def output(self, *command: str) -> str | None:
        """What a command prints; None if it cannot be had."""
        with suppress(OSError):
            return self.run(command).strip()
        return None


@dataclass(frozen=True)
class Board:
    """A machine, for people and for comparison; None where it does not say."""

    model: str
    os: str
    kernel: str
    architecture: str
    cores: int | None
    memory_bytes: int | None
    governor: str | None
    highest_hz: int | None
    nominal_flops: float | None
    """In fp32 a second, of all cores at their highest frequency; of known boards."""
    python: str


def board(machine: Machine) -> Board:
    """The machine that this runs on."""
    model, cores, highest = model_of(machine), os.cpu_count(), highest_hz(machine)
    each = next((flops for name, flops in CYCLE_FLOPS.items() if name in model), None)
    return Board(
        model=model,
        os=system(machine),
        kernel=platform.release(),
        architecture=platform.machine(),
        cores=cores,
        memory_bytes=memory_bytes(machine),
        governor=machine.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        highest_hz=highest,
        nominal_flops=float(each * cores * highest) if each and cores and highest else None,
        python=platform.python_version(),
    )


def model_of(machine: Machine) -> str:
    """Of the board, else of its processor."""
    found = machine.text("proc/device-tree/model")
    if not found and sys.platform == "darwin":
        found = machine.output("sysctl", "-n", "machdep.cpu.brand_string")
    return found or labelled(machine.text("proc/cpuinfo"), "model name") or platform.machine()


def labelled(text: str | None, label: str) -> str | None:
    """What stands behind a label and a colon."""
    for line in (text or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == label:
            return value.strip()
    return None


def system(machine: Machine) -> str:
    """The operating system's name and version."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    for line in (machine.text("etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def memory_bytes(machine: Machine) -> int | None:
    """Of the whole machine."""
    total = labelled(machine.text("proc/meminfo"), "MemTotal")
    if total:
        return 1024 * int(total.split()[0])
    found = machine.output("sysctl", "-n", "hw.memsize") if sys.platform == "darwin" else None
    return int(found) if found else None


def highest_hz(machine: Machine) -> int | None:
    """The highest frequency that the first core may have."""
    found = machine.text("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    return 1000 * int(found) if found else None


def temperature(machine: Machine) -> float | None:
    """Of the processor, in degrees Celsius."""
    zones = sorted((machine.root / "sys/class/thermal").glob("thermal_zone*"))
    kinds = {(machine.text(str(zone.relative_to(machine.root) / "type")) or ""): zone for zone in reversed(zones)}
    for kind in (*SENSORS, *reversed(kinds)):
        if kind in kinds:
            found = machine.text(str(kinds[kind].relative_to(machine.root) / "temp"))
            if found and found.lstrip("-").isdigit():
                return int(found) / 1000
    return None


def throttling(machine: Machine) -> list[str] | None:
    """What holds the board back or has since boot; empty for nothing, None where it does not say."""
    found = machine.output("vcgencmd", "get_throttled")
    if not found or "0x" not in found:
        return None
    bits = int(found.partition("=")[2], 16)
    now = [text for bit, text in THROTTLING.items() if bits >> bit & 1]
    return now + [f"{text} since boot" for bit, text in THROTTLING.items() if bits >> bit + SINCE_BOOT & 1]
