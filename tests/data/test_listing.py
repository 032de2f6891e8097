"""Directories of pictures: what is found in them, in torchvision's order, whatever links and systems put there."""

import hashlib
import os
import socket
import unicodedata

import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from simsfl.data.listing import checksums, list_pictures
from simsfl.data.load import load_dataset
from simsfl.data.picture import PictureError

CLASSES = ("cat", "dog")
PER_CLASS = 3


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9)).save(path, format="PNG")


def tree(root, splits=("train", "test"), classes=CLASSES):
    """Write a directory of pictures, and return its path."""
    for split in splits:
        for name in classes:
            for number in range(PER_CLASS):
                picture(root / split / name / f"{number}.png")
    return root


def found(root):
    """Return the paths of all pictures relative to the directory, and the labels, of both splits."""
    return [
        ([os.path.relpath(file, root) for file in split.files], split.labels.tolist()) for split in list_pictures(root)
    ]


def test_the_order_is_torchvisions(tmp_path):
    root = tree(tmp_path / "d", classes=("b", "B", "a b", "ä", "a-b", "a"))
    for name in ("train/a/x/9.png", "train/a/x-y/1.PNG", "train/a/x/y/2.jpeg", "train/b/Z.tiff", "train/b/notes.txt"):
        picture(root / name)
    for split, own in zip(("train", "test"), list_pictures(root), strict=True):
        theirs = ImageFolder(str(root / split))
        assert own.files == [file for file, _ in theirs.samples]
        assert own.labels.tolist() == theirs.targets
        assert list(own.classes) == theirs.classes


LINKS = {
    "to itself": [("train/cat/self", ".")],
    "to itself by name": [("train/cat/deep/self", "../../cat")],
    "to its split": [("train/cat/up", "..")],
    "to the whole": [("train/cat/up", "../.."), ("test/dog/up", "../..")],
    "to everything": [("train/cat/root", "/")],
    "in a circle": [("train/cat/a", "../dog"), ("train/dog/b", "../cat")],
    "in a circle of directories without pictures": [("train/cat/a/x", "../b"), ("train/cat/b/y", "../a")],
    "twice to the same": [("train/cat/one", "two"), ("train/cat/two/back", "..")],
}


@pytest.mark.parametrize("links", LINKS.values(), ids=LINKS)
def test_a_directory_counts_once_whatever_leads_to_it(links, tmp_path):
    root = tree(tmp_path / "d")
    before = found(root)
    for name, target in links:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    assert found(root) == before


def test_two_links_in_a_class_to_the_same_pictures(tmp_path):
    root = tree(tmp_path / "d")
    for name in ("1", "2"):
        picture(tmp_path / "pool" / f"{name}.png")
    for name in ("b", "a"):
        (root / "train" / "cat" / name).symlink_to(tmp_path / "pool")
    (train, _), _ = found(root)
    assert [name for name in train if "cat/" in name] == [
        *(f"train/cat/{number}.png" for number in range(PER_CLASS)),
        "train/cat/a/1.png",
        "train/cat/a/2.png",
    ]


def test_links_to_pictures_classes_and_splits_are_followed(tmp_path):
    """As on clusters, where a directory of links is made of pictures that lie elsewhere."""
    tree(tmp_path / "store")
    root = tmp_path / "d"
    (root / "train" / "cat").mkdir(parents=True)
    (root / "train" / "cat" / "1.png").symlink_to(tmp_path / "store" / "train" / "cat" / "0.png")
    (root / "train" / "cat" / "more").symlink_to(tmp_path / "store" / "test" / "cat")
    (root / "train" / "dog").symlink_to(tmp_path / "store" / "train" / "dog")
    (root / "test").symlink_to(tmp_path / "store" / "test")
    (tmp_path / "link").symlink_to(root)
    for path in (root, tmp_path / "link"):
        (train, labels), (test, _) = found(path)
        assert train == [
            "train/cat/1.png",
            *(f"train/cat/more/{number}.png" for number in range(PER_CLASS)),
            *(f"train/dog/{number}.png" for number in range(PER_CLASS)),
        ]
        assert labels == [0] * 4 + [1] * 3
        assert len(test) == 2 * PER_CLASS


HIDDEN = (".ipynb_checkpoints", ".thumbnails", ".git", "@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found")


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("place", ["train", "test", "train/cat", "test/dog/deep"])
def test_what_systems_put_into_directories_is_skipped(name, place, tmp_path):
    root = tree(tmp_path / ".cache" / "d")  # where the data set itself lies does not matter
    before = found(root)
    picture(root / place / name / "0.png")
    assert found(root) == before


def test_files_that_systems_make_are_skipped(tmp_path):
    root = tree(tmp_path / "d")
    before = found(root)
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png", ".0.png"):
        (root / "train" / "cat" / name).write_bytes(b"no picture")
    (root / "train" / "cat" / ".#0.png").symlink_to("nothing")
    assert found(root) == before


def refused(root):
    with pytest.raises(ValueError, match=r"^dataset: ") as caught:
        list_pictures(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_class_is_named(tmp_path):
    root = tree(tmp_path / "d")
    for name in ("bird", "ant"):
        for split in ("train", "test"):
            (root / split / name).mkdir()
    (root / "train" / "ant" / "cat.heic").write_bytes(b"")
    message = refused(root)
    assert f"class 'ant' of {root / 'train'} has no pictures, like 1 other; allowed:" in message
    assert ".png" in message


def test_what_leads_to_nothing_or_is_no_file_is_named(tmp_path):
    for number, (name, make) in enumerate(
        {
            "train/bird": lambda path: path.symlink_to("nothing"),
            "train/cow": lambda path: path.symlink_to("cow"),
            "train/cat/9.png": lambda path: path.symlink_to("nothing"),
            "test/cat/more": lambda path: path.symlink_to("../nothing"),
            "test/cat/fifo.jpg": os.mkfifo,
            "test/cat/zero.jpg": lambda path: path.symlink_to("/dev/zero"),
        }.items()
    ):
        root = tree(tmp_path / str(number))
        make(root / name)
        assert str(root / name) in refused(root)


def test_a_socket_with_a_pictures_name(tmp_path, monkeypatch):
    root = tree(tmp_path / "d")
    monkeypatch.chdir(root / "train" / "cat")  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("9.png")
        assert "9.png cannot be read (not a regular file)" in refused(root)


def test_a_directory_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    root, scandir = tree(tmp_path / "d"), os.scandir

    def denied(path):
        if str(path) == str(root / "train" / "cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)  # root, who may run this, may read everything
    assert f"{root / 'train' / 'cat'} cannot be read (Permission denied)" in refused(root)


def test_names_that_differ_only_in_their_unicode_form(tmp_path):
    one, other = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = tree(tmp_path / "d", splits=("train",), classes=("a", one))
    tree(root, splits=("test",), classes=("a", other))
    message = refused(root)
    assert "caf\\xe9" in message
    assert "cafe\\u0301" in message
    assert "another Unicode form" in message
    alone = tree(tmp_path / "e", splits=("train",), classes=(one,))
    tree(alone, splits=("test",), classes=(other,))
    assert "another Unicode form" in refused(alone)
    both = tree(tmp_path / "f", classes=(one, other))
    assert "look the same" in refused(both)


def test_two_classes_that_are_one_directory(tmp_path):
    root = tree(tmp_path / "d")
    (root / "train" / "kitten").symlink_to("cat")
    assert "classes 'cat' and 'kitten' of" in refused(root)


def test_val_sorted_into_classes_beside_a_test_split_that_is_not(tmp_path):
    """Tiny-ImageNet as people rearrange it, in three ways, with and without the file of annotations."""
    expected = (CLASSES, 2 * PER_CLASS)
    for number, (place, annotated) in enumerate(
        (place, annotated) for place in ("val", "val/images") for annotated in (True, False)
    ):
        root = tree(tmp_path / str(number), splits=("train", place))
        for name in ("test_0.JPEG", "test_1.JPEG"):
            picture(root / "test" / "images" / name)
        (root / "test" / "images" / "gone.JPEG").symlink_to("nothing")  # what is not used need not be whole
        (root / place / "images").mkdir(exist_ok=True)  # which is often left behind
        if annotated:
            (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tcat\t0\t0\t62\t62\n")
        _, test = list_pictures(root)
        assert (test.classes, len(test.files)) == expected
        assert all(f"/{place}/" in file for file in test.files)


def test_splits_without_the_classes_of_train(tmp_path):
    assert "train/ and test/ (or val/)" in refused(tree(tmp_path / "a", splits=("train",)))
    assert "train/ has no class" in refused(tree(tmp_path / "b", splits=("test",)))
    other = tree(tmp_path / "c", splits=("train",))
    tree(other, splits=("test",), classes=("x", "y"))
    assert "no class of train/, such as 'cat'" in refused(other)


@pytest.mark.parametrize("line", ["../../../etc/passwd\tcat", "/etc/passwd\tcat", "\tcat", "a\0b.png\tcat"])
def test_annotations_name_files_of_their_directory(line, tmp_path):
    root = tree(tmp_path / "d", splits=("train",))
    (root / "val").mkdir()
    (root / "val" / "val_annotations.txt").write_text(f"val_0.JPEG\tcat\r\n\n{line}\n")
    assert "line 3: " in refused(root)


def test_names_of_any_bytes(tmp_path):
    """A streamed directory is known by the bytes of its files' names."""
    root = tree(tmp_path / "d")
    odd = os.fsdecode(b"caf\xe9\n.png")
    picture(root / "train" / "cat" / odd)
    data = load_dataset(str(root), stream="always")
    names = sorted(b"train/cat/%s" % name for name in (b"0.png", b"1.png", b"2.png", b"caf\xe9\n.png"))
    names += [
        f"{split}/{label}/{n}.png".encode()
        for split, label in (("train", "dog"), ("test", "cat"), ("test", "dog"))
        for n in range(3)
    ]
    size = (root / "train" / "cat" / odd).stat().st_size
    assert data.listing == hashlib.sha256(b"".join(name + b"\n" for name in names)).hexdigest()
    assert data.checksum == hashlib.sha256(b"".join(b"%s %d\n" % (name, size) for name in names)).hexdigest()
    assert data.train.pixels[torch.tensor([3])].shape == (1, 3, 32, 32)
    (root / "train" / "cat" / odd).write_bytes(b"broken")
    with pytest.raises(PictureError, match="not a readable image"):
        data.train.pixels[torch.tensor([3])]


def test_a_mended_picture_keeps_the_checksum_of_names(tmp_path):
    root = tree(tmp_path / "d")
    before = load_dataset(str(root), stream="always")
    Image.new("RGB", (50, 50), "red").save(root / "train" / "cat" / "0.png")
    after = load_dataset(str(root), stream="always")
    assert after.listing == before.listing
    assert after.checksum != before.checksum
    assert load_dataset(str(root), stream="never").listing is None
    picture(root / "train" / "cat" / "new.png")
    assert load_dataset(str(root), stream="always").listing != before.listing


def test_checksums_need_files(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    for name in ("x.png", "none.png"):
        with pytest.raises(PictureError, match=name):
            checksums(tmp_path, [str(tmp_path / name)])
