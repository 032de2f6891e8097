"""CIFAR-10 for a machine without a network: what was packed is unpacked whole, or not at all."""

import contextlib
import hashlib
import io
import json
import random
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from benchmarks import pack_cifar10
from simsfl.data import ARRAYS, Arrays, sources
from simsfl.data.load import load_dataset
from simsfl.system import tensor_file


@pytest.fixture
def cifar(monkeypatch, tmp_path):
    """Put a CIFAR-10 of 60 smooth images into the cache as its only source, with its checksums; return its arrays."""
    rng = np.random.default_rng(0)
    waves = np.cumsum(rng.integers(-4, 5, (60, 32, 32, 3)), axis=1).astype(np.uint8)
    waves[0] = rng.integers(0, 256, (32, 32, 3))  # noise, which cannot be compressed
    labels = rng.integers(0, 10, 60)
    arrays = Arrays(waves[:50], labels[:50], waves[50:], labels[50:], tuple("abcdefghij"))
    sums = {key: hashlib.sha256(getattr(arrays, key).astype(np.uint8).tobytes()).hexdigest() for key in ARRAYS}
    monkeypatch.setattr(sources, "CIFAR10_SHA256", sums)
    sources.write_cache(sources.cache_directory() / "cifar10.safetensors", arrays)

    def refuse(*args, **options):
        raise OSError("no network in tests")

    monkeypatch.setattr(sources.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    monkeypatch.setattr(pack_cifar10, "COLUMN", 7)  # neither 50 nor 60 is a multiple of it
    monkeypatch.chdir(tmp_path)
    return arrays


@pytest.fixture
def slices(cifar, tmp_path, capsys):
    """Pack the small CIFAR-10; return the paths of its slices."""
    assert pack_cifar10.main(["pack", str(tmp_path / "slices")]) == 0
    capsys.readouterr()
    return sorted((tmp_path / "slices").iterdir())


def unpack(files, out):
    """Unpack slices into the directory `out`; return the exit code."""
    return pack_cifar10.main(["unpack", *map(str, files), "--out", str(out)])


def refusal(capsys):
    """Return the error, which must be one line on stderr that starts with "error: "; stdout must be empty."""
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("backwards", [False, True])
def test_simsfl_finds_what_was_unpacked_pixel_for_pixel(cifar, slices, tmp_path, monkeypatch, backwards):
    assert len(slices) == 2
    assert unpack(reversed(slices) if backwards else slices, tmp_path / "out") == 0
    original = sources.cache_directory() / "cifar10.safetensors"
    assert (tmp_path / "out" / "cifar10.safetensors").read_bytes() == original.read_bytes()
    monkeypatch.setenv("SIMSFL_CACHE", str(tmp_path / "out"))
    data = load_dataset("cifar10", data_dir=tmp_path / "none")
    assert str(tmp_path / "out") in data.origin
    assert (data.train.pixels.permute(0, 2, 3, 1).numpy() == cifar.train_x).all()
    assert (data.test.pixels.permute(0, 2, 3, 1).numpy() == cifar.test_x).all()
    assert data.train_labels.tolist() == cifar.train_y.tolist()
    assert data.test_labels.tolist() == cifar.test_y.tolist()
    assert data.classes == cifar.classes


def test_without_out_it_goes_where_simsfl_looks(cifar, slices, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SIMSFL_CACHE", str(tmp_path / "empty"))
    assert pack_cifar10.main(["unpack", *map(str, slices)]) == 0
    assert "SIMSFL_CACHE" not in capsys.readouterr().out  # the variable need not be set
    assert "cache" in load_dataset("cifar10", data_dir=tmp_path / "none").origin


def test_the_pictures_are_smaller_than_the_pixels_and_anyone_can_read_them(cifar, slices):
    sizes = [file.stat().st_size for file in slices]
    assert max(sizes) < 1.2 * min(sizes)
    assert sum(sizes) < 0.7 * (cifar.train_x.nbytes + cifar.test_x.nbytes)
    with zipfile.ZipFile(slices[0]) as archive, Image.open(archive.open("000.webp")) as picture:
        assert (np.asarray(picture)[32:64] == cifar.train_x[1]).all()


def test_equal_data_makes_equal_slices(slices, tmp_path):
    assert pack_cifar10.main(["pack", str(tmp_path / "again")]) == 0
    for file in slices:
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def rewritten(file, change):
    """Write a slice anew, with the same pictures and with a changed ``about.json``."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(members["about.json"])
    change(about)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {**members, "about.json": json.dumps(about)}.items():
            archive.writestr(name, content)


def flip(file):
    """Change a bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty_archive(file):
    """Replace a file by a zip archive without members."""
    with zipfile.ZipFile(file, "w"):
        pass


def swap_labels(about):
    """Change the first test label in the content of ``about.json``."""
    about["test_y"][0] = (about["test_y"][0] + 1) % 10


FAULTS = {
    "truncated": (lambda a, b: b.write_bytes(b.read_bytes()[:-50]), ["cifar10-2-of-2.zip", "damaged"]),
    "flipped": (lambda a, b: flip(b), ["cifar10-2-of-2.zip", "damaged", "CRC-32"]),
    "empty": (lambda a, b: b.write_bytes(b""), ["cifar10-2-of-2.zip", "damaged"]),
    "empty archive": (lambda a, b: empty_archive(b), ["cifar10-2-of-2.zip", "no slice", "about.json"]),
    "other archive": (
        lambda a, b: rewritten(b, lambda about: about.pop("classes")),
        ["cifar10-2-of-2.zip", "no slice", "classes"],
    ),
    "absent": (lambda a, b: b.unlink(), ["cifar10-2-of-2.zip", "No such file"]),
    "twice": (shutil.copy, ["cifar10-2-of-2.zip", "same slice as", "cifar10-1-of-2.zip"]),
    "of three": (lambda a, b: [rewritten(x, lambda about: about.update(slices=3)) for x in (a, b)], ["number 3 of 3"]),
    "of others": (lambda a, b: rewritten(b, swap_labels), ["not packed together"]),
    "other data": (lambda a, b: [rewritten(x, swap_labels) for x in (a, b)], ["test_y is not CIFAR-10's (SHA-256"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_slice_is_one_line_and_leaves_nothing(slices, tmp_path, capsys, fault):
    do, words = FAULTS[fault]
    do(*slices)
    assert unpack(slices, tmp_path / "out") == 2
    said = refusal(capsys)
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


def test_a_missing_slice_is_named(slices, tmp_path, capsys):
    assert unpack(slices[1:], tmp_path / "out") == 2
    assert "number 1 of 2 is missing" in refusal(capsys)
    assert not (tmp_path / "out").exists()


def test_a_slice_with_any_byte_flipped_is_refused_or_has_done_no_harm(cifar, slices, tmp_path, capsys):
    whole = slices[0].read_bytes()
    expected = (sources.cache_directory() / "cifar10.safetensors").read_bytes()
    chance = random.Random(0)
    refused = 0
    places = [*range(200), *range(len(whole) - 600, len(whole)), *chance.sample(range(len(whole)), 50)]
    for place in places[::5]:
        content = bytearray(whole)
        content[place] ^= 1 << chance.randrange(8)
        slices[0].write_bytes(content)
        out = tmp_path / str(place)
        if unpack(slices, out) == 0:  # such as a byte of a date
            capsys.readouterr()
            assert (out / "cifar10.safetensors").read_bytes() == expected
        else:
            refusal(capsys)
            assert not out.exists()
            refused += 1
    assert refused > 50


def test_nothing_is_replaced(cifar, slices, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "cifar10.safetensors").write_text("mine")
    assert unpack(slices, out) == 2
    assert f"{out / 'cifar10.safetensors'} exists already" in refusal(capsys)
    assert (out / "cifar10.safetensors").read_text() == "mine"
    assert pack_cifar10.main(["pack", str(out)]) == 2
    assert f"{out} exists already" in refusal(capsys)
    assert [file.name for file in out.iterdir()] == ["cifar10.safetensors"]


def test_where_nothing_can_be_written_is_one_line(slices, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert unpack(slices, tmp_path / "file" / "out") == 2
    assert "cannot be written to (Not a directory)" in refusal(capsys)
    assert pack_cifar10.main(["pack", str(tmp_path / "file" / "out")]) == 2
    said = refusal(capsys)
    assert "cannot be written" in said
    assert f"'{tmp_path / 'file'}'" in said  # the file that is in the way is named


def full(*args):
    """Fail as on a full disk."""
    raise OSError(28, "No space left on device")


def stopped(*args):
    """Fail as at Ctrl-C."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(("happens", "code"), [(full, 2), (stopped, 130)])
def test_a_full_disk_or_ctrl_c_leaves_nothing_behind(slices, tmp_path, monkeypatch, happens, code):
    def in_the_second(file, number, *rest):
        file.write_bytes(b"part")
        if number == 2:
            happens()

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(pack_cifar10, "_write_slice", in_the_second)
        assert pack_cifar10.main(["pack", str(tmp_path / "other")]) == code
    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "blocks_of", happens)  # after the header is written
        assert unpack(slices, tmp_path / "out") == code
    assert sorted(tmp_path.iterdir()) == before


def test_cifar10_not_to_be_had_is_one_line(cifar, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SIMSFL_CACHE", str(tmp_path / "empty"))
    assert pack_cifar10.main(["pack", str(tmp_path / "slices")]) == 2
    assert "CIFAR-10 is not available" in refusal(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["pack|unpack"]),
        (["pak"], ["'pak'", "unpack"]),
        (["pack"], ["DIR"]),
        (["unpack"], ["SLICE"]),
        (["pack", "x", "--outt", "y"], ["outt"]),
        (["unpack", ""], ["is empty"]),
    ],
)
def test_a_wrong_command_line_is_one_line(argv, words, capsys):
    assert pack_cifar10.main(argv) == 2
    said = refusal(capsys)
    assert all(word in said for word in words), said


@pytest.mark.parametrize("argv", [["--help"], ["pack", "--help"], ["unpack", "--help"]])
def test_help_says_what_to_give(argv):
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
        pack_cifar10.main(argv)
    assert ended.value.code == 0
    assert f"pack_cifar10.py {argv[0]}".removesuffix(" --help") in said.getvalue()
    for word in {"pack": ["DIR", "--data-dir"], "unpack": ["SLICE", "--out DIR"]}.get(argv[0], ["pack", "unpack"]):
        assert word in said.getvalue()


@pytest.mark.network
def test_real_cifar10_makes_two_slices_below_55_megabytes(tmp_path):
    assert pack_cifar10.main(["pack", str(tmp_path / "slices"), "--data-dir", str(tmp_path)]) == 0
    slices = sorted((tmp_path / "slices").iterdir())
    assert len(slices) == 2
    assert all(file.stat().st_size < 55_000_000 for file in slices)
    assert unpack(slices, tmp_path / "out") == 0
    sources.check("cifar10", sources.read_cache(tmp_path / "out" / "cifar10.safetensors"))
