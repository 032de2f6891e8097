"""Training images without labels: clients hold them, and those with labels serve evaluation alone."""

import shutil
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from simsfl import RunConfig, Simulation, extend
from simsfl.cli.report import program as report
from simsfl.config.catalogue import DOORS
from simsfl.data import make_dataset, sources, with_auxiliary
from simsfl.data.folder import Pictures
from simsfl.data.load import load_dataset
from simsfl.data.partition import Partition, Partitioner
from simsfl.rounds import evaluating
from tests.conftest import TINY

OWNERS = np.arange(48) * 5 % 8


@pytest.fixture(scope="module")
def mixed(arrays):
    """Return the images of `arrays`, and 48 without labels, which belong to eight clients."""
    without = np.random.default_rng(1).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    return replace(arrays, unlabelled_x=without, train_client=OWNERS)


@pytest.mark.parametrize("name", ["unlabelled_x", "unlabeled_x"])
def test_arrays_of_a_file(name, mixed, tmp_path):
    labelled = {name: getattr(mixed, name) for name in ("train_x", "train_y", "test_x", "test_y")}
    np.savez(tmp_path / "a.npz", **labelled, train_client=OWNERS, **{name: mixed.unlabelled_x})
    data = load_dataset(str(tmp_path / "a.npz"))
    assert data.checksum == mixed.checksum
    assert data.held == range(80, 128)
    assert (data.train.pixels[80:].permute(0, 2, 3, 1).numpy() == mixed.unlabelled_x).all()
    every = np.concatenate([mixed.train_x, mixed.unlabelled_x]) / 255
    np.testing.assert_allclose(data.train.mean.flatten(), every.mean(axis=(0, 1, 2)), rtol=1e-6)
    for changes, message in (
        ({name: mixed.unlabelled_x[:, :7]}, rf"{name} has images of \(7, 8, 3\), but train_x of \(8, 8, 3\)"),
        ({name: mixed.unlabelled_x.astype(float)}, f"{name} has dtype float64; it must be uint8"),
        ({name: mixed.unlabelled_x[:9]}, r"train_client has .* shape \(48,\); it must be integers of shape \(9,\)"),
    ):
        np.savez(tmp_path / "b.npz", **labelled | {"train_client": OWNERS, name: mixed.unlabelled_x} | changes)
        with pytest.raises(ValueError, match=rf"^dataset: .*b\.npz: {message}"):
            load_dataset(str(tmp_path / "b.npz"))


def test_clients_hold_them_and_the_others_are_evaluated_on(mixed, dataset, tmp_path):
    data = make_dataset("mixed", "made up", mixed)
    config = RunConfig(**TINY | {"partition": "natural", "linear_probe": True, "probe_epochs": 1, "rounds": 2})
    simulation = Simulation(config, data)
    for client in range(8):
        assert (simulation.parts.partition[client] == 80 + np.flatnonzero(client == OWNERS)).all()
    assert simulation.parts.plan(0).groups[0].indices.min() >= 80
    records = list(simulation.train())
    evaluations = [record for record in records if record.event == "evaluation"]
    assert all(record.clients_top1 is None for record in evaluations)
    assert len(evaluations[-1].class_top1) == 3
    assert [record.kind for record in records if record.event == "probe"] == ["linear"]
    same = {"mean": data.train.mean, "std": data.train.std}
    alone = replace(dataset, train=replace(dataset.train, **same), test=replace(dataset.test, **same))
    expected = Simulation(replace(config, partition="iid"), alone).evaluate_untrained()
    assert evaluations[0] == expected  # by the labelled images alone
    half = Simulation(replace(config, partition="iid", data_proportion=0.5), data).parts.partition
    assert half.indices.min() >= 80
    assert half.sizes.tolist() == [3] * 8
    simulation.save(tmp_path / "run")
    loaded = Simulation.load(tmp_path / "run", data)
    assert (loaded.parts.partition.indices == simulation.parts.partition.indices).all()
    assert evaluating.evaluate(loaded.parts, 2) == evaluations[-1]


def test_a_report_leaves_out_the_classes_of_clients(mixed, tmp_path, capsys):
    np.savez(
        tmp_path / "a.npz", **{name: array for name, array in vars(mixed).items() if name not in ("classes", "digests")}
    )
    simulation = Simulation(RunConfig(**TINY | {"dataset": str(tmp_path / "a.npz"), "rounds": 1}))
    simulation.save(tmp_path / "run")
    assert report.main([str(tmp_path / "run")]) == 0
    assert sorted(path.name for path in (tmp_path / "run" / "figures").iterdir()) == ["features.png", "views.png"]


def test_what_needs_labels_is_refused(mixed):
    data = make_dataset("mixed", "made up", mixed)
    nobodys = replace(data, train_client=None)
    have = "and the 48 images of mixed that clients hold have none; allowed"
    for fields, images, message in (
        ({"partition": "shards"}, data, f"partition: shards needs labels, {have}: iid, natural$"),
        ({"partition": "dirichlet"}, nobodys, f"partition: dirichlet needs labels, {have}: iid$"),
        (
            {"objective": "supervised"},
            data,
            f"objective: supervised needs labels, {have}: an objective without labels$",
        ),
        ({"supervised": True}, data, f"supervised: training on labels needs labels, {have}: an objective"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Simulation(RunConfig(**TINY | fields), images)


def test_partitions_of_plugins_get_no_labels(mixed):
    class Turns(Partitioner):
        """Deals in turn."""

        needs_labels = False

        def deal(self, labels, weights, rng):
            assert labels.tolist() == [-1] * 48
            return Partition.by_owner(np.arange(48) % len(weights), len(weights))

    with patch.dict(DOORS["partition"]):
        extend.partition("turns")(Turns)
        parts = Simulation(RunConfig(**TINY | {"partition": "turns"}), make_dataset("mixed", "made up", mixed)).parts
    assert parts.partition[3].tolist() == list(range(83, 128, 8))


def test_as_an_auxiliary_data_set(mixed, dataset):
    data = make_dataset("mixed", "made up", mixed)
    both = with_auxiliary(data, data)
    assert both.auxiliary == 48
    assert torch.equal(both.train.pixels[128:], data.train.pixels[80:])
    config = RunConfig(**TINY | {"aux_dataset": "other"})
    assert Simulation(config, both).parts.auxiliary.indices.min() == 128
    assert with_auxiliary(dataset, data).held == range(80)


def test_a_directory_without_classes(tmp_path):
    rng = np.random.default_rng(0)

    def picture(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)

    for split, count in (("train", 8), ("test", 3)):
        for name in ("a", "b", "c"):
            for number in range(count):
                picture(tmp_path / split / name / f"{number}.png")
    for number in range(32):
        picture(tmp_path / "unlabelled" / f"{number % 3}" / "deep" / f"{number:02}.png")
    config = RunConfig(**TINY | {"dataset": str(tmp_path), "image_size": 16})
    resident, streamed = (Simulation(replace(config, stream=how)) for how in ("never", "always"))
    assert isinstance(streamed.dataset.train.pixels, Pictures)
    assert streamed.dataset.held == range(24, 56)
    assert streamed.dataset.train.pixels.files[24:26] == [
        str(tmp_path / f"unlabelled/0/deep/{n}.png") for n in ("00", "03")
    ]
    assert list(streamed.train()) == list(resident.train())
    streamed.save(tmp_path / "run")
    assert Simulation.load(tmp_path / "run").progress.finished_rounds == 3
    shutil.rmtree(tmp_path / "unlabelled")
    (tmp_path / "unlabelled").mkdir()
    with pytest.raises(ValueError, match=r"^dataset: .*unlabelled has no pictures; allowed: files that end in \.jpg"):
        load_dataset(str(tmp_path))


def test_a_data_set_that_is_known_to_have_no_labels_is_refused_before_it_is_loaded():
    with pytest.raises(ValueError, match=r"^partition: shards needs labels, and clients' images of stl10-unlabelled"):
        RunConfig(dataset="stl10-unlabelled")
    with pytest.raises(ValueError, match=r"^dataset: clients' images of stl10-unlabelled have no labels to learn from"):
        RunConfig(dataset="stl10-unlabelled", partition="iid", supervised=True)
    RunConfig(dataset="stl10-unlabelled", partition="iid")
    RunConfig(dataset="stl10-unlabelled", data_proportion=0.0, aux_dataset="cifar10")


def test_stl10(tmp_path, monkeypatch):
    """The set's own files, of which torchvision's class reads the split that it calls unlabeled."""
    rng, folder = np.random.default_rng(0), tmp_path / "stl10_binary"
    folder.mkdir()
    written = {}
    for name, count in (("train", 20), ("test", 10), ("unlabeled", 40)):
        written[name] = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        written[name].transpose(0, 3, 2, 1).tofile(folder / f"{name}_X.bin")  # planes, column by column
        if name != "unlabeled":
            (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    data = load_dataset("stl10-unlabelled", data_dir=tmp_path)
    assert data.held == range(20, 60)
    every = np.concatenate([written["train"], written["unlabeled"]])
    assert (data.train.pixels.permute(0, 2, 3, 1).numpy() == every).all()
    assert data.train_labels.tolist() == list(range(10)) * 2
    assert data.train.std.flatten().tolist() == pytest.approx([0.2471, 0.2435, 0.2616])
    again = load_dataset("stl10-unlabelled", data_dir=tmp_path / "none")
    assert "cache" in again.origin
    assert again.checksum == data.checksum != load_dataset("stl10", data_dir=tmp_path).checksum
    assert again.held == data.held
