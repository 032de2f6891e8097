"""A run goes on where its directory or its images have been moved to, and after one of its pictures was mended."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from simsfl import RunConfig, Simulation
from simsfl.cli import export_checkpoint, run
from simsfl.cli.attack import program as attack
from simsfl.cli.report import program as report
from simsfl.cli.session import Session
from tests.conftest import TINY, flags
from tests.runs.changing import SETTINGS, begun, final, resumed


@pytest.fixture(scope="module")
def whole(npz, tmp_path_factory):
    """A run that was neither interrupted nor moved."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run.main(flags(dataset=npz, out=out, **SETTINGS)) == 0
    return out


@pytest.fixture
def work(npz, tmp_path, monkeypatch):
    """A working directory with data and a run that was killed, which is then moved."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(npz, old / "d.npz")
    monkeypatch.chdir(old)
    begun(monkeypatch, "d.npz", "run")
    monkeypatch.chdir(tmp_path)
    old.rename(new)
    monkeypatch.chdir(new)
    return new


def test_the_working_directory_was_moved_and_a_link_is_left(work, whole):
    (work.parent / "old").symlink_to(work)
    before = (work / "run" / "config.json").read_bytes()
    assert resumed("run") == 0
    assert final(work / "run") == final(whole)
    assert (work / "run" / "config.json").read_bytes() == before


def test_the_data_lie_elsewhere(work, whole, capfd):
    assert resumed("run") == 2
    lost = f"{work.parent}/old/d.npz (No such file or directory)"
    error = f"error: dataset: there is no file or directory {lost}; allowed: the path of one\n"
    assert capfd.readouterr().err == error
    assert resumed("run", "--dataset", "d.npz") == 0
    assert final(work / "run") == final(whole)
    assert resumed("run", "--dataset", "d.npz", "--data-dir", "anywhere") == 0
    assert "is finished" in capfd.readouterr().out


def test_other_images_are_refused_wherever_they_lie(work, arrays, capfd):
    names = ("train_x", "train_y", "test_x", "test_y")
    np.savez("other.npz", **{name: getattr(arrays, name)[::-1] for name in names})
    before = final(work / "run")
    assert resumed("run", "--dataset", "other.npz") == 2
    assert f"dataset: {work}/other.npz is not what the run in run was trained on" in capfd.readouterr().err
    assert final(work / "run") == before


def test_a_run_saved_in_python_goes_on_elsewhere(npz, tmp_path, monkeypatch):
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    shutil.copy(npz, here)
    monkeypatch.chdir(tmp_path)
    simulation = Simulation(RunConfig(**TINY, dataset="here.npz"))
    next(simulation.rounds())
    simulation.save("run")
    here.rename(there)
    loaded = Simulation.load("run", places={"dataset": "there.npz"})
    next(loaded.rounds())
    loaded.save("run")
    assert Simulation.load("run", places={"dataset": "there.npz"}).progress.round_index == 2


def test_a_report_without_the_images_leaves_out_what_shows_them(work, caplog):
    assert report.main(["run", "--out", "page"]) == 0
    (said,) = caplog.messages
    assert "there is no file or directory" in said
    assert said.endswith("partition, views and features of run are left out")
    assert sorted(path.name for path in (work / "page" / "figures").iterdir()) == ["curves.png", "divergence.png"]
    (work.parent / "old").symlink_to(work)
    assert report.main(["run", "--out", "page"]) == 0
    assert len(list((work / "page" / "figures").iterdir())) == 5
    assert len(caplog.messages) == 1


def test_an_attack_is_told_where_the_images_are(work, capfd):
    argv = ["run", "--decoder", "conv_normN0C4", "--attack-epochs", "1", "--attacker-data", "0.2", "--device", "cpu"]
    assert attack.main(argv) == 2
    assert "there is no file or directory" in capfd.readouterr().err
    assert attack.main([*argv, "--dataset", "d.npz"]) == 0
    assert (work / "run" / "attacks" / "conv_normN0C4.json").exists()
    assert export_checkpoint.main(["run", "--out", "exported"]) == 0  # which needs no images


def pictures(path):
    """An ImageFolder of 40 training and 10 test pictures of 8x8, in two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for label in ("a", "b"):
            (path / split / label).mkdir(parents=True)
            for n in range(count):
                image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(path / split / label / f"{n:02}.png")
    return path


def test_a_picture_that_is_damaged_during_a_run(tmp_path, monkeypatch, capfd, caplog):
    """The run ends as it does when the disk is full, and goes on once the picture is mended."""
    data, out = pictures(tmp_path / "d"), tmp_path / "run"
    settings = SETTINGS | {"clients": 4, "cohort": 4, "image_size": 8, "stream": "always", "rounds": 4}
    assert run.main(flags(dataset=data, out=tmp_path / "whole", **settings)) == 0
    picture = data / "train" / "b" / "03.png"
    content, honest = picture.read_bytes(), Session.save

    def save(session):
        honest(session)
        if session.simulation.progress.round_index == 2:
            picture.write_bytes(content[:50] + bytes(len(content) - 50))

    with monkeypatch.context() as patch:
        patch.setattr(Session, "save", save)
        capfd.readouterr()
        assert run.main(flags(dataset=data, out=out, **settings)) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert f"dataset: {picture} is not a readable image" in error
    assert f"the last good checkpoint is kept in {out / 'checkpoints'}" in error
    assert json.loads((out / "live.json").read_text())["activity"] == "failed"
    assert resumed(out) == 2  # before training, since all pictures of such a small set are measured first
    assert f"dataset: {picture} is not a readable image" in capfd.readouterr().err
    picture.write_bytes(content)
    shutil.copytree(out, tmp_path / "again")
    assert resumed(out) == 0
    assert final(out) == final(tmp_path / "whole")
    assert caplog.messages == []

    with Image.open(picture) as image:  # mended in another way
        image.convert("RGB").save(picture, "BMP")
    assert picture.stat().st_size != len(content)
    assert resumed(tmp_path / "again") == 0
    (said,) = caplog.messages
    assert "have other sizes than when the run" in said
    assert final(tmp_path / "again") == final(tmp_path / "whole")  # its pixels are the same

    picture.rename(picture.with_name("99.png"))
    capfd.readouterr()
    assert resumed(tmp_path / "again") == 2
    assert "is not what the run in" in capfd.readouterr().err
