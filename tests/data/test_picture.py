"""Pictures: what their numbers mean, and which files are refused, held to Pillow's and tifffile's own files."""

import io
import os
import socket
import zlib

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import default_loader

from simsfl.data.picture import PictureError, read_picture

tifffile = pytest.importorskip("tifffile")  # comes with scikit-image

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
"""Brightness of 8x8 pixels from black to white."""
BYTES = (RAMP * 65535).astype(np.uint16) >> 8
"""The upper 8 of its 16 bits."""


def refused(path, words=None):
    with pytest.raises(PictureError, match=words) as caught:
        read_picture(path, 8)
    assert str(caught.value).startswith(f"dataset: {path} is not a readable image (")
    assert "allowed: 8 or unsigned 16 bits a channel" in str(caught.value)
    assert "\n" not in str(caught.value)


def gray16(path):
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(path)


DEFINED = {
    "png": gray16,
    "jp2": gray16,
    "little.tif": lambda path: tifffile.imwrite(path, (RAMP * 65535).astype("<u2"), byteorder="<"),
    "big.tif": lambda path: tifffile.imwrite(path, (RAMP * 65535).astype(">u2"), byteorder=">"),
    "white-is-zero.tif": lambda path: tifffile.imwrite(
        path, 65535 - (RAMP * 65535).astype("<u2"), byteorder="<", photometric="miniswhite"
    ),
    "deflated.tif": lambda path: tifffile.imwrite(path, (RAMP * 65535).astype(np.uint16), compression="zlib"),
    "color.tif": lambda path: tifffile.imwrite(
        path, np.stack([RAMP * 65535] * 3, axis=-1).astype(np.uint16), photometric="rgb"
    ),
    "pgm": lambda path: path.write_bytes(b"P5 8 8 65535\n" + (RAMP * 65535).astype(">u2").tobytes()),
}
"""Files of the ramp in 16 bits."""


@pytest.mark.parametrize("name", DEFINED)
def test_of_16_bits_the_upper_8_are_taken(name, tmp_path):
    path = tmp_path / f"gray.{name}"
    DEFINED[name](path)
    pixels = read_picture(path, 8)
    assert pixels.shape == (8, 8, 3)
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], BYTES)


def test_12_bits_are_scaled_by_their_range(tmp_path):
    """In TIFF, packed two numbers in three bytes; in PGM, with their largest number in the header."""
    values = (RAMP * 4095).astype(np.uint16)
    even, odd = values[:, ::2], values[:, 1::2]
    packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], axis=-1)
    tags = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 8), (279, 96)]
    entries = b"".join(
        number.to_bytes(2, "little") + b"\3\0\1\0\0\0" + value.to_bytes(4, "little") for number, value in tags
    )
    header = b"II*\0\10\0\0\0" + len(tags).to_bytes(2, "little") + entries + bytes(4)
    assert len(header) == 122
    (tmp_path / "a.tif").write_bytes(header + packed.astype(np.uint8).tobytes())
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 4095\n" + values.astype(">u2").tobytes())
    for name in ("a.tif", "a.pgm"):
        np.testing.assert_allclose(read_picture(tmp_path / name, 8)[..., 0], values >> 4, atol=1)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("f4", "floats have no defined black and white"),
        ("f2", "format or kind of numbers"),
        ("f8", "format or kind of numbers"),
        ("i1", "signed numbers have no defined black and white"),
        ("i2", "signed numbers have no defined black and white"),
        ("i4", "signed numbers have no defined black and white"),
        ("u4", "32-bit numbers have no defined black and white"),
        ("u8", "format or kind of numbers"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_numbers_without_a_defined_range_are_refused(dtype, words, order, tmp_path):
    highest = 1 if dtype[0] == "f" else 100
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, (RAMP * highest).astype(order + dtype), photometric="minisblack", byteorder=order)
    refused(path, words if (dtype, order) != ("u4", ">") else "format or kind of numbers")
    tifffile.imwrite(path, np.stack([RAMP] * 3, axis=-1).astype(dtype), photometric="rgb")
    refused(path)


def test_floats_under_another_name(tmp_path):
    (tmp_path / "x.ppm").write_bytes(b"Pf\n8 8\n-1.0\n" + RAMP.astype("<f4").tobytes())
    refused(tmp_path / "x.ppm", "floats have no defined black and white")


def transparent(path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def palette(path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).quantize(16).save(path, transparency=bytes(range(16)))


def turned(path):
    exif = Image.Exif()
    exif[0x112] = 6  # to be shown with its left side on top
    Image.fromarray(np.repeat(BYTES.astype(np.uint8)[..., None], 3, axis=2)).save(path, exif=exif, quality=95)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize(
    ("name", "make"),
    [("alpha.png", transparent), ("alpha.tif", transparent), ("palette.png", palette)]
    + [(f"turned.{name}", turned) for name in ("jpg", "png", "webp", "tif")],
)
def test_alpha_and_orientation_are_treated_as_by_torchvision(name, make, tmp_path):
    make(tmp_path / name)
    np.testing.assert_array_equal(read_picture(tmp_path / name, 8), np.asarray(default_loader(str(tmp_path / name))))


def test_an_alpha_channel_is_left_out(tmp_path):
    pixels = np.full((8, 8, 4), (10, 200, 30, 0), dtype=np.uint8)  # fully transparent
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png", 8), pixels[..., :3])


def test_an_orientation_in_exif_data_is_ignored(tmp_path):
    turned(tmp_path / "x.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png", 8)[..., 0], BYTES)


def test_bombs_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return len(content).to_bytes(4, "big") + kind + content + crc.to_bytes(4, "big")

    size = (40_000).to_bytes(4, "big") + (30_000).to_bytes(4, "big")
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\1\0\0\0\0") + chunk(b"IDAT", zlib.compress(bytes(9)))
    (tmp_path / "x.png").write_bytes(content)
    refused(tmp_path / "x.png", "1200000000 pixels")
    with (tmp_path / "long.png").open("wb") as file:
        file.write(content)
        file.truncate(1 << 40)
    refused(tmp_path / "long.png", "more than 2,147,483,648 bytes")
    Image.new("L", (1, 2000)).save(tmp_path / "thin.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    refused(tmp_path / "thin.png", "with 1x2000 pixels it is too narrow")


def test_what_is_no_file_is_refused_and_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.png")
    for name, target in (("zero", "/dev/zero"), ("one", "two.png"), ("two", "one.png"), ("gone", "nothing")):
        (tmp_path / f"{name}.png").symlink_to(target)
    (tmp_path / "directory.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        for name, words in {
            "fifo": "not a regular file",
            "zero": "not a regular file",
            "socket": "not a regular file",
            "directory": "not a regular file",
            "one": "Too many levels of symbolic links",
            "gone": "No such file or directory",
        }.items():
            refused(tmp_path / f"{name}.png", words)


def test_formats_for_which_programs_are_started_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", format="EPS")
    refused(tmp_path / "x.png", "its format is EPS")


def test_a_picture_cut_short(tmp_path):
    content = io.BytesIO()
    Image.fromarray(BYTES.astype(np.uint8)).save(content, format="PNG")
    for size in (0, 10, len(content.getvalue()) // 2):
        (tmp_path / "x.png").write_bytes(content.getvalue()[:size])
        refused(tmp_path / "x.png")
