"""The list of device profiles that come with simsfl, for ``simsfl fleet --list``."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table
from rich.text import Text

from simsfl.fleet.profile_files import about, shipped
from simsfl.system.console import Output


class List(argparse.Action):
    """The action of a flag that prints the list and ends the program, whatever else is given or missing."""

    def __init__(self, **options: Any):
        super().__init__(nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        """Print the names that ``device`` takes in a fleet file, with what is known of each."""
        table = Table.grid(padding=(0, 2))
        for name, files in shipped().items():
            own = about(files)
            facts = Text.assemble(f"{own['device']}: {own['source']}, {own['date']}\n", (own["how"], "dim"))
            table.add_row(Text(name, "bold"), facts)
        Output().print(table)
        parser.exit()
