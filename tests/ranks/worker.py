"""What one rank of a test does: ``worker.py agree FILE CASE ...``, ``worker.py save DIR`` or ``worker.py finish DIR``.

``agree`` trains each case on all ranks in float64; the first rank trains it alone as well, and writes into the file, as
JSON, how far apart the two are. ``save`` trains a round and a step of a run and saves it into a directory; ``finish``
takes it up from there and saves it at its end. Both keep all tensors beside the directory, with the ending ``.pt``.
"""

import json
import sys
from dataclasses import astuple
from pathlib import Path

import torch

from simsfl import Simulation
from simsfl.cli.ranks import joined, leave
from simsfl.runs.metrics_log import NOTHING
from simsfl.system.signals import Stop
from simsfl.system.tensor_file import Rows
from simsfl.testing import _images
from tests.ranks.cases import config_of


def whole(simulation):
    """Return what a checkpoint would hold, as tensors by name."""
    saved = simulation.state.saved(sent=False).items()
    return {name: torch.cat([one.tensor[:0], *one.blocks()]) if isinstance(one, Rows) else one for name, one in saved}


def numbers(records):
    """Return all numbers in records, in order."""
    found = []

    def visit(value):
        if isinstance(value, float | int):
            found.append(value)
        elif isinstance(value, list | tuple):
            for one in value:
                visit(one)

    visit([astuple(record) for record in records])
    return found


def apart(case, world):
    """Return how far all ranks' tensors and records are from those of one process, at most, on the first rank."""
    ours = Simulation(config_of(case), _images(), dtype=torch.float64, world=world)
    our_records, our_tensors = list(ours.train()), whole(ours)
    if world.rank:
        return None
    one = Simulation(config_of(case), _images(), dtype=torch.float64)
    records, tensors = list(one.train()), whole(one)
    assert list(tensors) == list(our_tensors)
    assert len(numbers(records)) == len(numbers(our_records))
    pairs = [(tensor, our_tensors[name]) for name, tensor in tensors.items()]
    pairs.append(tuple(torch.tensor(numbers(some), dtype=torch.float64) for some in (records, our_records)))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())


def main(what, where, *cases):
    """Do what is asked for."""
    torch.set_num_threads(1)
    with Stop() as stop, joined(stop) as world:
        if what == "agree":
            found = {case: apart(case, world) for case in cases}
        elif what == "save":
            simulation = Simulation(config_of("own queues"), _images(), world=world)
            next(simulation.rounds())
            next(simulation.round())
            simulation.save(where)
        else:
            simulation = Simulation.load(where, _images(), world=world)
            list(simulation.rounds())
            simulation.save(where, NOTHING)
        if what != "agree":
            tensors = whole(simulation)
        if world.rank == 0:
            if what == "agree":
                Path(where).write_text(json.dumps(found))
            else:
                torch.save(tensors, f"{where}.{what}.pt")

    leave(0, world)


if __name__ == "__main__":
    main(*sys.argv[1:])
