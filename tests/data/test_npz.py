"""Files of arrays: those of users and of MedMNIST, whole and hostile."""

import os
import zipfile

import numpy as np
import pytest

from simsfl import RunConfig, Simulation, data
from simsfl.data.load import load_dataset
from simsfl.system.array_zip import ArrayZip
from tests.conftest import TINY


def test_npz(npz, arrays):
    data = load_dataset(str(npz))
    assert data.checksum == arrays.checksum
    assert data.name == str(npz)
    assert load_dataset(str(npz), image_size=16).image_size == 16


def test_gray_npz_and_labels_with_gaps(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 10, 10, 1), dtype=np.uint8)
    np.savez(tmp_path / "gray.npz", train_x=x, train_y=[3, 7, 3, 7, 9, 9], test_x=x[:2], test_y=[9, 3])
    data = load_dataset(str(tmp_path / "gray.npz"))
    assert data.classes == ("3", "7", "9")
    assert data.train_labels.tolist() == [0, 1, 0, 1, 2, 2]
    assert data.test_labels.tolist() == [2, 0]
    assert (data.train.pixels[:, 0] == data.train.pixels[:, 2]).all()


def medmnist(path, shape=(28, 28), labels=1, **changes):
    """Write a file as MedMNIST's are; None leaves an array out."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 12), ("val", 4), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count * labels, dtype=np.uint8).reshape(count, labels) % 3
    arrays |= changes
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (64, 64), (128, 128, 3), (224, 224)])
def test_medmnist_as_it_is(shape, tmp_path):
    path = tmp_path / "bloodmnist.npz"
    arrays = medmnist(path, shape)
    data = load_dataset(str(path))
    assert data.image_size == shape[0]
    assert data.classes == ("0", "1", "2")
    for split, images, labels in (("train", data.train, data.train_labels), ("test", data.test, data.test_labels)):
        expected = arrays[f"{split}_images"]
        expected = expected if expected.ndim == 4 else np.stack([expected] * 3, axis=-1)
        np.testing.assert_array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), expected)
        assert labels.tolist() == arrays[f"{split}_labels"][:, 0].tolist()
    assert data.origin == f"file {path}, without its 4 validation images"
    assert load_dataset(str(path), image_size=32).train.pixels.shape == (12, 3, 32, 32)


def test_a_run_on_medmnist(tmp_path):
    path = tmp_path / "bloodmnist.npz"
    medmnist(path)
    config = RunConfig(**TINY | {"dataset": str(path), "clients": 3, "rounds": 1, "image_size": 32})
    assert list(Simulation(config).train())


def refused(path, *words):
    with pytest.raises(ValueError, match=r"^dataset: ") as caught:
        load_dataset(str(path))
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_medmnist_that_is_no_classification_of_pictures(tmp_path):
    path = tmp_path / "x.npz"
    medmnist(path, labels=14)
    refused(path, "train_labels has shape (12, 14)", "one label for each image")
    for shape in ((28, 28, 28), (64, 64, 64)):
        medmnist(path, shape)
        refused(path, f"train_images has shape (12, {shape[0]}", "(n, height, width) if gray")
    medmnist(path, test_labels=None)
    refused(path, "lacks test_labels", "it has train_images")
    medmnist(path, test_labels=np.full((6, 1), 9, np.uint8))
    refused(path, "label 9 in test_labels that does not occur in train_labels")


def entry(file, name, shape, dtype="|u1", content=b""):
    """Write the header of an array into a zip file, and behind it some content, which need not be the array's."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    file.writestr(f"{name}.npy", b"\x93NUMPY\1\0v\0" + header.encode() + content)


def test_arrays_that_are_larger_than_the_file(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as file:
        for split in ("train", "test"):
            entry(file, f"{split}_x", (10**9, 90, 90, 1))
            entry(file, f"{split}_y", (10**9,))
    refused(path, "unusable train_x", "(1000000000, 90, 90, 1)")


def test_images_that_do_not_fit_into_memory_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    zeros = np.zeros((1000, 100, 100), np.uint8)
    np.savez_compressed(path, train_x=zeros, train_y=np.zeros(1000, int), test_x=zeros[:1], test_y=[0])
    assert path.stat().st_size < zeros.nbytes / 500
    small = load_dataset(str(path), image_size=8)
    assert small.train.pixels.shape == (1000, 3, 8, 8)
    monkeypatch.setattr(data, "free_memory", lambda: 4 * 10**7)
    with pytest.raises(ValueError, match=r"takes 0.8 GB at 512x512, and 0.0 GB of memory"):
        load_dataset(str(path), image_size=512)
    monkeypatch.setattr(data, "free_memory", lambda: 10**7)
    monkeypatch.setattr(ArrayZip, "array", None)
    refused(path, "takes 0.0 GB at 100x100, and 0.0 GB of memory are free")


def test_what_is_no_file_is_refused_and_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "fifo.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name in ("fifo.npz", "zero.npz"):
        refused(tmp_path / name, "is neither a file nor a directory")
    (tmp_path / "loop.npz").symlink_to("loop.npz")
    refused(tmp_path / "loop.npz")
