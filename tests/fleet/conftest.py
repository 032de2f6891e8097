"""A small run, a device that was measured at the very work of its clients, and fleets of that device."""

import json

import pytest

from simsfl import RunConfig, Simulation
from simsfl.fleet.profiles import PHASES
from tests.conftest import TINY

SECONDS = dict(zip(PHASES, (0.4, 0.2, 0.01, 0.1, 0.3, 0.02, 0.05), strict=True))
SERVER = "[server]\nstep_ms = 500.0\n"


def group(**more):
    """Return a table of a fleet file."""
    fields = {"name": '"all"', "share": 1.0, "device": '"result.json"', "up_mbit_s": 1e9, "down_mbit_s": 1e9} | more
    lines = (f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    return "[[group]]\n" + "".join(lines)


@pytest.fixture
def config(npz):
    return RunConfig(**TINY | {"dataset": str(npz)})


@pytest.fixture
def result(config, tmp_path):
    """What pi_bench.py would have measured of the very work of the run's clients."""
    own = Simulation(config).config
    names = ("arch", "width", "norm", "cut_layer", "bottleneck", "client_residual", "weight_standardisation", "head")
    trace = {name: getattr(own, name) for name in (*names, "key_dim", "image_size", "batch_size")}
    latency = {phase: {"mean": seconds} for phase, seconds in SECONDS.items()}
    energy = {"mean_watts": 5.0, "idle_before": 1.0, "idle_after": 3.0, "meter": "ina226"}
    content = {"board": {"model": "a board"}, "trace": trace, "latency": latency, "energy": energy}
    (tmp_path / "result.json").write_text(json.dumps(content))
    return content
