"""Partitions that are passed from Python: recorded with the run, and taken from there when it goes on."""

import json
from dataclasses import replace

import numpy as np
import pytest

import simsfl
from simsfl import RunConfig, Simulation
from simsfl.cli import run
from simsfl.data import make_dataset
from simsfl.extend import Partition
from tests.conftest import TINY, flags

PARTS = [np.arange(client, 80, 9) for client in range(8)]
"""Images of eight clients; each ninth image belongs to none."""


@pytest.fixture
def config(npz):
    return RunConfig(**TINY | {"dataset": str(npz), "rounds": 2})


def test_it_is_recorded_and_restored(config, tmp_path, capsys):
    out = tmp_path / "run"
    began = Simulation(config, partition=Partition.of(PARTS))
    assert [own.tolist() for own in map(began.parts.partition.__getitem__, range(8))] == [own.tolist() for own in PARTS]
    next(began.rounds())
    began.save(out)
    loaded = Simulation.load(out)
    assert loaded.config.partition == "given"
    assert (loaded.parts.partition.indices == began.parts.partition.indices).all()
    list(began.train())
    assert simsfl.resume(out).rounds == 2
    assert (Simulation.load(out).state.server.online == began.state.server.online).all()
    assert run.main(["--resume", str(out), "--dashboard", "off"]) == 0
    other = Simulation(config, partition=Partition.of(PARTS[::-1]))
    with pytest.raises(ValueError, match=r"^out: .* holds another run"):
        other.save(out)
    kept = (out / "partition.npz").read_bytes()
    for change, words in (
        (lambda file: file.unlink(), "cannot be read (No such file or directory)"),
        (lambda file: file.write_bytes(kept[:99]), "is not a whole .npz or zip file"),
        (Partition.of(PARTS[::-1]).save, "is damaged, or was edited"),
    ):
        change(out / "partition.npz")
        capsys.readouterr()
        assert run.main(["--resume", str(out), "--dashboard", "off"]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: resume: {out / 'partition.npz'} {words}")
        assert message.endswith("; allowed: as the run wrote it\n")


def test_a_partition_is_part_of_what_a_run_is(config, tmp_path):
    """One that is the same as by rule gives the same run, and is not taken for it."""
    ruled = Simulation(config)
    dealt = ruled.parts.partition
    given = Simulation(config, partition=Partition(dealt.indices, dealt.offsets))
    assert list(given.train()) == list(ruled.train())
    for name, simulation in (("ruled", ruled), ("given", given)):
        simulation.save(tmp_path / name)
    assert json.loads((tmp_path / "given" / "config.json").read_text())["partition"] == dealt.checksum
    assert json.loads((tmp_path / "ruled" / "config.json").read_text())["partition"] is None
    assert not (tmp_path / "ruled" / "partition.npz").exists()


def test_of_images_without_labels(config, arrays):
    without = make_dataset("mixed", "made up", replace(arrays, unlabelled_x=arrays.train_x[:72]))
    parts = [np.arange(client, 72, 8) for client in range(8)]
    held = Simulation(replace(config, partition="shards"), without, partition=Partition.of(parts)).parts.partition
    assert held[1].tolist() == list(range(81, 152, 8))


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (PARTS, "list is no Partition; allowed: "),
        (Partition.of(PARTS[:7]), "it has 7 clients, and the config 8; allowed: as many as `clients`"),
        (Partition.of([*PARTS[:7], np.array([5, 80])]), "client 7 holds image 80; allowed: 0 to 79"),
        (Partition.of([np.array([-1]), *PARTS[1:]]), "client 0 holds image -1; allowed: 0 to 79"),
        (Partition.of([*PARTS[:7], PARTS[3]]), "clients 3 and 7 hold image 3; allowed: each image once"),
        (Partition.of([*PARTS[:7], np.array([8, 8])]), "client 7 holds twice image 8; allowed: each image once"),
        (Partition(np.arange(9), np.array([0, 5, 4, 4, 4, 4, 4, 4, 9])), "its offsets do not divide its indices; "),
        (Partition(np.arange(9.0), np.arange(9)), "its indices and offsets are not both int64 of one dimension; "),
        (Partition(np.arange(9), np.arange(9, dtype=np.uint8)), "its indices and offsets are not both int64 of one "),
    ],
)
def test_what_is_no_partition_of_the_images(partition, message, config):
    with pytest.raises(ValueError, match=r"^partition: ") as error:
        Simulation(config, partition=partition)
    assert str(error.value).startswith(f"partition: {message}")


def test_too_few_images_and_fields_that_do_not_go_with_it(config, npz, capsys):
    for part, message in (
        (
            np.array([7]),
            "batch_size: 2 is more than the 1 image that client 7 would hold; allowed: 1 to 1 images a batch",
        ),
        (np.array([], int), "clients: of 8, client 7 would hold no image; allowed: a partition in which each client"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Simulation(config, partition=Partition.of([*PARTS[:7], part]))
    for changes, message in (
        ({"unequal": "0.5_0.5|2|0.7_0.3"}, "unequal: 0.5_0.5.* is not for partition given, in which"),
        ({"data_proportion": 0.5}, "data_proportion: 0.5 is not for a partition that is given; allowed: 1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Simulation(replace(config, **changes), partition=Partition.of(PARTS))
    assert run.main([*flags(**TINY | {"dataset": npz}), "--partition", "given", "--out", "none"]) == 2
    assert capsys.readouterr().err.startswith("error: partition: given is not passed; allowed: in Python Simulation(")


def test_images_that_were_passed_have_to_be_passed_again(dataset, arrays, tmp_path, capsys):
    config, out = RunConfig(**TINY | {"rounds": 1}), tmp_path / "run"
    simsfl.run(config, out, dataset=dataset)
    assert json.loads((out / "config.json").read_text())["dataset"]["sha256"] == arrays.checksum
    assert simsfl.resume(out, dataset=dataset).rounds == 1
    assert run.main(["--resume", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"error: dataset: tiny was passed from Python when the run in {out} began; allowed: "
        f"simsfl.resume({str(out)!r}, dataset=...), or --dataset with a file of the same images\n"
    )
    other = make_dataset("tiny", "made up", replace(arrays, test_x=arrays.test_x[::-1]))
    with pytest.raises(ValueError, match=r"^dataset: tiny is not what the run in .* was trained on; allowed: the same"):
        simsfl.resume(out, dataset=other)
