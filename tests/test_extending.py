"""The recipes of docs/extending.md, each followed with a toy."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from simsfl import RunConfig, Simulation
from simsfl.cli.table import cells
from simsfl.cli.table import program as table
from simsfl.config.catalogue import ARCHITECTURES, DATASETS, PARTITIONS, Architecture, Code, DataSet, PartitionKind
from simsfl.data import Arrays, make_dataset
from simsfl.data.partition import Partition, make_partition
from simsfl.models.layers import Backbone, ConvNormReLU
from tests.conftest import TINY


def toy_network(width, image_size, style):
    layers = [ConvNormReLU(3, width, 3, 2, style), ConvNormReLU(width, 2 * width, 3, 2, style)]
    return Backbone(layers, 2 * width)


def toy_data(wanted):
    rng = np.random.default_rng(wanted.seed)
    train, test = (rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8) for count in (48, 6))
    arrays = Arrays(train, np.arange(48) % 3, test, np.arange(6) % 3, ("a", "b", "c"))
    return make_dataset("toy", "drawn by hand", arrays, image_size=wanted.image_size)


def alternating(labels, weights, rng):
    order = rng.permutation(len(labels))
    return Partition.of([order[client :: len(weights)] for client in range(len(weights))])


class ToyMeter:
    name, source, uncertainty, estimated = "toy", "a number made up", 0.5, True

    def __init__(self, machine):
        self.machine = machine

    def watts(self):
        return 3.0


def code(function):
    return Code(f"{__name__}:{function.__name__}")


def assert_engines_agree(config):
    losses = []
    for engine in ("vmap", "loop"):
        simulation = Simulation(replace(config, engine=engine), dtype=torch.float64)
        losses.append([record.loss for record in simulation.rounds()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "toy", Architecture(4, code(toy_network)))
    monkeypatch.setitem(DATASETS, "toy", DataSet("a toy", code(toy_data), 48, 8, 3))
    monkeypatch.setitem(PARTITIONS, "alternating", PartitionKind(code(alternating)))


@pytest.mark.parametrize("cut_layer", [1, 2])
def test_a_network_a_data_set_and_a_partition(toys, cut_layer):
    settings = {"arch": "toy", "dataset": "toy", "partition": "alternating", "cut_layer": cut_layer, "width": None}
    config = RunConfig(**{**TINY, **settings})
    assert_engines_agree(config)
    simulation = Simulation(config)
    assert simulation.config.width == 4
    assert simulation.parts.partition.sizes.tolist() == [6] * 8
    with pytest.raises(ValueError, match="cut_layer: 3 is out of range; allowed for toy: 1 to 2"):
        Simulation(replace(config, cut_layer=3))


def test_a_partition_that_leaves_too_little_is_refused(toys):
    labels = np.arange(10)
    assert sorted(make_partition(labels, 3, kind="alternating").indices.tolist()) == labels.tolist()
    with pytest.raises(ValueError, match="batch_size: 4 is more than the 3 images that client 1 would hold"):
        make_partition(labels, 3, kind="alternating", batch_size=4)


def test_a_meter(monkeypatch):
    meters = pytest.importorskip("simsfl.hw_profile.meters")
    monkeypatch.setitem(meters.METERS, "toy", partial(meters._plain, "toy", ToyMeter))
    machine = meters.Machine()
    assert meters.choose("toy", machine).watts() == 3.0
    assert "toy" in meters.present(machine)[0]
    with pytest.raises(ValueError, match="toy takes nothing after a colon"):
        meters.choose("toy:1", machine)
    with pytest.raises(ValueError, match=r"'tox' is not known \(did you mean toy\?\)"):
        meters.choose("tox", machine)


def test_a_table(monkeypatch, npz, tmp_path, capsys):
    def toy():
        return cells.Table("Two temperatures", [cells.Cell("MocoSFL", f"T {t:g}", {"temperature": t}) for t in (1, 2)])

    monkeypatch.setitem(cells.TABLES, "toy", toy)
    settings = {**TINY, "dataset": npz, "rounds": 1, "device": "cpu"}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert table.main(["toy", "--dry-run", "--out", str(tmp_path / "out"), *flags]) == 0
    printed = capsys.readouterr().out
    assert "Two temperatures" in printed
    assert "--temperature 2" in printed
