"""The machine that this runs on, and its state, read from the system's files and commands.

Nothing is guessed: what the system does not report is None.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from simsfl.system.decoding import Amount, Count

__all__ = ["SINCE_BOOT", "Board", "Machine", "board", "model_of", "temperature", "throttling"]

_THROTTLING = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Bits of ``vcgencmd get_throttled`` that hold now; those `_HIGHER` places higher have held since boot."""
_HIGHER = 16
SINCE_BOOT = "since boot"
"""End of the texts for what has held since boot."""
_SENSORS = ("cpu-thermal", "x86_pkg_temp", "soc-thermal")
"""Types of thermal zones that belong to a processor, the best first."""
_CYCLE_FLOPS = {"Raspberry Pi 4": 8, "Raspberry Pi 5": 16}
"""fp32 operations that a core does in a cycle, by model of board (Arm's optimisation guides).

A Cortex-A72 does one multiply-add of four numbers in a cycle, a Cortex-A76 two."""


def _run(command: Sequence[str]) -> str:
    """Return what a command prints.

    Raises:
        OSError: the command is not installed, fails, or takes more than two seconds. The text is the first line that it
            printed about a failure.
    """
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=2, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} takes more than two seconds") from error
    if done.returncode:
        printed = f"{done.stderr}\n{done.stdout}".split("\n")
        what = next(filter(None, map(str.strip, printed)), f"{command[0]} ends with exit code {done.returncode}")
        raise OSError(what)
    return done.stdout


@dataclass(frozen=True)
class Machine:
    """Access to the system's files and commands, so that what reads them can be tested on recordings."""

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str] = _run

    def text(self, path: str) -> str | None:
        """Return the content of a file without surrounding blanks and NULs; None if it cannot be read."""
        with suppress(OSError, UnicodeDecodeError):
            return (self.root / path).read_text(encoding="utf-8").strip("\0 \n")
        return None

    def output(self, *command: str) -> str | None:
        """Return what a command prints, without surrounding blanks; None if it cannot be run or fails."""
        with suppress(OSError):
            return self.run(command).strip()
        return None


@dataclass(frozen=True)
class Board:
    """Description of a machine, for people and for comparisons; a field is None where the system does not report it."""

    model: str
    os: str
    kernel: str
    architecture: str
    cores: Count | None
    memory_bytes: Count | None
    governor: str | None
    highest_hz: Count | None
    nominal_flops: Amount | None
    """fp32 operations a second of all cores at their highest frequency; known boards only."""
    python: str


def board(machine: Machine) -> Board:
    """Return the description of the machine that this runs on."""
    model, cores, highest = model_of(machine), os.cpu_count(), _highest_hz(machine)
    each = next((flops for name, flops in _CYCLE_FLOPS.items() if name in model), None)
    return Board(
        model=model,
        os=_system(machine),
        kernel=platform.release(),
        architecture=platform.machine(),
        cores=cores,
        memory_bytes=_memory_bytes(machine),
        governor=machine.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        highest_hz=highest,
        nominal_flops=float(each * cores * highest) if each and cores and highest else None,
        python=platform.python_version(),
    )


def model_of(machine: Machine) -> str:
    """Return the model of the board, or if the system does not report one, of its processor."""
    found = machine.text("proc/device-tree/model")
    if not found and sys.platform == "darwin":
        found = machine.output("sysctl", "-n", "machdep.cpu.brand_string")
    return found or _labelled(machine.text("proc/cpuinfo"), "model name") or platform.machine()


def _labelled(text: str | None, label: str) -> str | None:
    """Return the value after `label` and a colon in the first line that has them; None if no line does."""
    for line in (text or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == label:
            return value.strip()
    return None


def _system(machine: Machine) -> str:
    """Return the name and version of the operating system."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    for line in (machine.text("etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _memory_bytes(machine: Machine) -> int | None:
    """Return the bytes of memory of the machine."""
    total = _number((_labelled(machine.text("proc/meminfo"), "MemTotal") or "").removesuffix("kB").strip())
    if total is not None:
        return 1024 * total
    return _number(machine.output("sysctl", "-n", "hw.memsize")) if sys.platform == "darwin" else None


def _highest_hz(machine: Machine) -> int | None:
    """Return the highest frequency of the first core, in hertz."""
    found = _number(machine.text("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"))
    return None if found is None else 1000 * found


def _number(text: str | None, base: int = 10) -> int | None:
    """Return the whole number that a file or a command holds; None if it holds none."""
    with suppress(ValueError):
        return int(text or "", base)
    return None


def temperature(machine: Machine) -> float | None:
    """Return the temperature of the processor in degrees Celsius; None if the system does not report it."""
    zones = sorted((machine.root / "sys/class/thermal").glob("thermal_zone*"))
    kinds = {(machine.text(str(zone.relative_to(machine.root) / "type")) or ""): zone for zone in reversed(zones)}
    for kind in (*_SENSORS, *reversed(kinds)):
        if kind in kinds:
            found = _number(machine.text(str(kinds[kind].relative_to(machine.root) / "temp")))
            if found is not None:
                return found / 1000
    return None


def throttling(machine: Machine) -> list[str] | None:
    """Return what limits the board's speed now, or has limited it since boot.

    The list is empty where nothing limits or has limited it, and None where the board does not report it.
    """
    bits = _number((machine.output("vcgencmd", "get_throttled") or "").partition("throttled=")[2], 16)
    if bits is None:
        return None
    now = [text for bit, text in _THROTTLING.items() if bits >> bit & 1]
    return now + [f"{text} {SINCE_BOOT}" for bit, text in _THROTTLING.items() if bits >> bit + _HIGHER & 1]
