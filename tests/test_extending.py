"""The recipes of docs/extending.md are executed as they stand there, and add what they say."""

import re
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
import torch

from docs.generate import ROOT, modules
from simsfl import RunConfig, Simulation
from simsfl.cli.table import cells
from simsfl.cli.table import program as table
from simsfl.config.catalogue import ARCHITECTURES, DATASETS, PARTITIONS
from simsfl.data.load import load_dataset
from simsfl.data.partition import make_partition
from simsfl.hw_profile import meters
from tests.conftest import TINY, flags

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = dict(section.split("\n", 1) for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:])
"""Text of each recipe by its title."""
BLOCK = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""A block of a recipe: the path of the file that it belongs to, and the code."""
REGISTRIES = (ARCHITECTURES, DATASETS, PARTITIONS, meters.METERS, cells.TABLES)


@pytest.fixture
def follow(monkeypatch):
    """Return a function that follows a recipe, given its title; at the end of the test, everything is as before."""

    def follow(title):
        for path, code in re.findall(BLOCK, RECIPES[title]):
            execute(path, code, monkeypatch)

    with ExitStack() as stack:
        for registry in REGISTRIES:
            stack.enter_context(patch.dict(registry))
        yield follow


def execute(path, code, monkeypatch):
    """Execute code as an addition to a file of the library, or as a new file of it."""
    known = {file: name for _, name, file in modules()}
    if ROOT / path in known:
        names = dict(vars(import_module(known[ROOT / path])))
    else:
        name = ".".join(("simsfl", *path.removeprefix("simsfl/").removesuffix(".py").split("/")))
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        names = vars(sys.modules[name])
    exec(compile(code, path, "exec"), names)


def test_every_block_of_the_page_is_executed():
    assert PAGE.count("```python") == sum(len(re.findall(BLOCK, recipe)) for recipe in RECIPES.values())


def test_the_readme_links_to_every_recipe():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"docs/extending\.md#([\w-]+)", readme) == [title.lower().replace(" ", "-") for title in RECIPES]


def losses(config, engine):
    """Return the loss of each round, computed in float64."""
    return [record.loss for record in Simulation(replace(config, engine=engine), dtype=torch.float64).rounds()]


@pytest.mark.parametrize("cut_layer", [1, 2])
def test_a_network(cut_layer, npz, follow):
    follow("Add a network")
    config = RunConfig(
        **TINY | {"arch": "toy", "width": None, "cut_layer": cut_layer, "dataset": str(npz), "rounds": 1}
    )
    assert Simulation(config).config.width == 16
    assert losses(config, "vmap") == pytest.approx(losses(config, "loop"), rel=1e-9)
    with pytest.raises(ValueError, match="cut_layer: 3 is out of range; allowed for toy: 1 to 2"):
        Simulation(replace(config, cut_layer=3))


def test_a_data_set(follow):
    follow("Add a data set")
    load = {"data_dir": "data", "image_size": None, "stream": "never", "auxiliary": None}
    dataset, same, other = (load_dataset("toy", seed=seed, **load) for seed in (0, 0, 1))
    assert dataset.train.pixels.shape == (100, 3, 8, 8)
    assert dataset.test.pixels.shape == (20, 3, 8, 8)
    assert dataset.train_labels.bincount().tolist() == [34, 33, 33]
    assert dataset.checksum == same.checksum != other.checksum
    assert DATASETS["toy"].about.startswith("100 + 20 images of 8x8, 3 classes: ")
    simulation = Simulation(RunConfig(**TINY | {"dataset": "toy", "rounds": 1}))
    assert np.isfinite([record.loss for record in simulation.rounds()]).all()


def test_a_partition(follow, dataset):
    follow("Add a partition")
    labels = np.arange(10)
    assert sorted(make_partition(labels, 3, kind="alternating").indices.tolist()) == labels.tolist()
    with pytest.raises(ValueError, match="batch_size: 4 is more than the 3 images that client 1 would hold"):
        make_partition(labels, 3, kind="alternating", batch_size=4)
    simulation = Simulation(RunConfig(**TINY | {"partition": "alternating"}), dataset)
    assert simulation.parts.partition.sizes.tolist() == [10] * 8


def test_a_meter(follow, tmp_path):
    follow("Add a power meter")
    machine = meters.board.Machine(tmp_path)
    assert "hwmon" not in meters.present(machine)[0]
    sensor = tmp_path / "sys/class/hwmon/hwmon0/power1_input"
    sensor.parent.mkdir(parents=True)
    sensor.write_text("2260000\n")
    assert "hwmon" in meters.present(machine)[0]
    assert meters.choose("hwmon", machine).watts() == 2.26
    with pytest.raises(ValueError, match="hwmon takes nothing after a colon"):
        meters.choose("hwmon:1", machine)
    with pytest.raises(ValueError, match=r"'hwmom' is not known \(did you mean hwmon\?\)"):
        meters.choose("hwmom", machine)


def test_a_table(follow, npz, tmp_path, capsys):
    follow("Add a table")
    settings = TINY | {"dataset": npz, "rounds": 1, "device": "cpu"}
    assert table.main(["toy", "--dry-run", *flags(out=tmp_path / "out", **settings)]) == 0
    printed = capsys.readouterr().out
    assert "Two temperatures" in printed
    assert "--temperature 0.2" in printed
