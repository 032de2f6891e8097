"""Data sets of torchvision, which give one image at a time."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision import datasets
from torchvision.transforms.v2 import functional as TF

import simsfl
from simsfl import RunConfig
from simsfl.data.load import load_dataset
from simsfl.extend import from_torchvision, make_dataset
from tests.conftest import TINY


@pytest.fixture
def folder(tmp_path):
    """Return a directory in ImageFolder layout, with pictures of several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for name in ("a", "b", "c"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                picture = rng.integers(0, 256, (20 + number, 26, 3), dtype=np.uint8)
                Image.fromarray(picture).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_an_image_folder_is_the_directory_that_it_reads(folder):
    train, test = (datasets.ImageFolder(str(folder / split)) for split in ("train", "test"))
    data, expected = from_torchvision(train, test, image_size=16), load_dataset(str(folder), image_size=16)
    assert torch.equal(data.train.pixels, expected.train.pixels)
    assert torch.equal(data.test.pixels, expected.test.pixels)
    assert data.test_labels.tolist() == expected.test_labels.tolist()
    assert (data.name, data.classes, data.checksum) == ("imagefolder", ("a", "b", "c"), expected.checksum)
    with pytest.raises(
        ValueError, match=r"^dataset: image 1 of train of imagefolder has 21x26 pixels, and the first 20x"
    ):
        from_torchvision(train, test)
    halves = from_torchvision(Subset(train, range(8, 24)), Subset(test, [3, 8]), unlabelled=train, image_size=16)
    assert halves.classes == ("1", "2")
    assert halves.test_labels.tolist() == [0, 1]
    assert halves.held == range(16, 40)
    assert torch.equal(halves.train.pixels[16:], expected.train.pixels)


def kinds(array):
    """Return an image as each of the types that items may have."""
    tensor, gray = TF.pil_to_tensor(Image.fromarray(array)), Image.fromarray(array[..., 0])
    colour = [array, tensor, Image.fromarray(array)]
    return colour, [array[..., 0], array[..., :1], tensor[0], tensor[:1], gray, gray.convert("LA")]


def test_images_of_any_type(arrays):
    array = arrays.train_x[0]
    for expected, images in zip((array, array[..., :1].repeat(3, axis=-1)), kinds(array), strict=True):
        labels = [0, 1, np.int8(1), torch.tensor(0), 1, 0][: len(images)]
        pairs = list(zip(images, labels, strict=True))
        data = from_torchvision(pairs, pairs, unlabelled=images, name="mine")
        assert (data.train.pixels.permute(0, 2, 3, 1).numpy() == expected).all()
        assert data.unlabelled == len(images)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "train of mine has no images; allowed: one or more"),
        (
            [(torch.zeros(3, 8, 8), 0)],
            r"image 0 of train of mine cannot be used \(it is a Tensor of float32 and shape \(3, 8",
        ),
        (
            [(np.zeros((8, 8, 4), np.uint8), 0)],
            r"image 0 of train of mine cannot be used \(it is an ndarray of uint8 and",
        ),
        (
            [("cat.png", 0)],
            r"image 0 of train of mine cannot be used \(it is 'cat.png'\); allowed: PIL images, or uint8",
        ),
        ([(Image.new("F", (8, 8)), 0)], "image 0 of train of mine cannot be used .floats have no defined black"),
        ([(np.zeros((8, 8), np.uint8), 0.5)], "label 0 of train of mine is 0.5; allowed: whole numbers from 0"),
        ([(np.zeros((8, 8), np.uint8), "cat")], "label 0 of train of mine is 'cat'; allowed: whole numbers from 0"),
        ([(np.zeros((8, 8), np.uint8), -1)], "mine: train has label -1; labels must be 0 or more"),
        (
            [np.zeros((8, 8), np.uint8)],
            "item 0 of train of mine is an ndarray of uint8 .*; allowed: an image and a label",
        ),
        ([(np.zeros((9, 9), np.uint8), 0)], "test_x of mine has images of 8x8, and train_x of 9x9; allowed: one size"),
        ([(np.zeros((8, 8), np.uint8), 1)], "mine has label 0 in test that does not occur in train"),
    ],
)
def test_what_is_no_image_or_no_label(train, message):
    with pytest.raises(ValueError, match=f"^dataset: {message}") as error:
        from_torchvision(train, [(np.zeros((8, 8), np.uint8), 0)], name="mine")
    assert "\n" not in str(error.value)


def test_labels_have_names(arrays):
    class Named(list):
        classes = (("red", "crimson"), "green")

    pairs = Named(zip(arrays.train_x[:4], [0, 1, 0, 1], strict=True))
    assert from_torchvision(pairs, pairs).classes == ("red, crimson", "green")
    with pytest.raises(ValueError, match=r"^dataset: test_y of named has the value 2; allowed: 0 to 1$"):
        from_torchvision(pairs, [(arrays.train_x[0], 2)])


def test_a_run_on_items_is_that_on_arrays(arrays, tmp_path):
    splits = (
        list(zip(getattr(arrays, f"{name}_x"), getattr(arrays, f"{name}_y"), strict=True)) for name in ("train", "test")
    )
    data, config = from_torchvision(*splits, name="tiny"), RunConfig(**TINY | {"rounds": 1})
    simsfl.run(config, tmp_path / "items", dataset=data)
    simsfl.run(config, tmp_path / "arrays", dataset=make_dataset("tiny", "made up", arrays))
    one, other = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("items", "arrays"))
    assert one == other
