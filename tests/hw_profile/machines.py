"""Machines whose files, commands and I2C chips a test decides."""

PI_4, PI_5 = "Raspberry Pi 4 Model B Rev 1.4", "Raspberry Pi 5 Model B Rev 1.0"


class Bus:
    """An I2C bus on which one chip answers, whose registers are written as data sheets have them."""

    def __init__(self, address, registers):
        self.address, self.registers = address, registers

    def read_word_data(self, address, register):
        if address != self.address or register not in self.registers:
            raise OSError(121, "Remote I/O error")
        return int.from_bytes(self.registers[register].to_bytes(2, "big"), "little")


def no_command(command):
    raise FileNotFoundError(f"no {command[0]}")


def raiser(error):
    """A function that raises an error, whatever it is called with."""

    def raises(*arguments):
        raise error

    return raises


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def stat(user, idle, waiting):
    """Of a system with so many ticks; a guest's are among the user's already."""
    return f"cpu  {user} 20 30 {idle} {waiting} 5 5 0 {user} 0\ncpu0 1 2 3 4 5 6 7 8 9 0\nintr 5\n"


def rapl_files(*microjoules):
    """The counters of as many packages, beside others that are not added."""
    zones = {f"intel-rapl:{index}": (f"package-{index}", count) for index, count in enumerate(microjoules)}
    zones |= {
        "intel-rapl:90": ("psys", 10**9),
        "intel-rapl:0:0": ("core", 10**9),
        "intel-rapl-mmio:0": ("package-0", 5),
    }
    files = {}
    for zone, (name, count) in zones.items():
        parts = {"name": f"{name}\n", "energy_uj": f"{count}\n", "max_energy_range_uj": "262143328850\n"}
        files |= {f"sys/class/powercap/{zone}/{part}": content for part, content in parts.items()}
    return files
