"""Records of a fleet, as a run writes them, and the table of its clients, made by hand."""

import csv

import numpy as np

from simsfl.runs.metrics import FleetRecord, GroupStanding, to_dict

COLUMNS = (
    *("client", "group", "drawn", "came", "late", "away"),
    *("compute_seconds", "transfer_seconds", "wait_seconds", "wh", "bytes_up", "bytes_down"),
)


def record(number, seconds=60.0, clock=None, wh=2.0, **groups):
    """Return the record of a round as a dict; groups are numbers of clients drawn, late and away, and a charge.

    How the times of a group are known follows; it is "measured" if that is left out.
    """
    given = groups or {"boards": (5, 1, 1, None)}
    standings = {name: GroupStanding(*(*counts, "measured")[:5]) for name, counts in given.items()}
    phases = {"compute": seconds / 2, "up": seconds / 4, "down": seconds / 8, "server": seconds / 8}
    clock = number * seconds if clock is None else clock
    return to_dict(FleetRecord(number, seconds, clock, phases, wh, 0.5, 4000, 2000, standings))


def write_clients(path, lines):
    """Write a table of clients, given for each its group, rounds drawn, late and away, hours and Wh."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for client, (group, drawn, late, away, hours, wh) in enumerate(lines):
            seconds = np.array([0.5, 0.25, 0.25]) * 3600 * hours
            came = drawn - late - away
            writer.writerow([client, group, drawn, came, late, away, *seconds, wh, 400 * came, 200 * came])
