"""Decoding of a file with a picture into a square of 8-bit pixels."""

from __future__ import annotations

import os
import warnings
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from simsfl.system.reading import open_regular

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, as Pillow names them; for some others it starts programs."""
_LARGEST_FILE = 1 << 31
"""Most bytes of a file: those of the most pixels that Pillow decodes, in 16 bits, and some room."""
_BITS_PER_SAMPLE, _WHITE_IS_ZERO, _SAMPLE_FORMAT = 258, 262, 339
"""Numbers of tags of TIFF: bits of a number, whether 0 is white (0) or black (1), and the kind of the numbers."""
_SIGNED = 2
"""Kind of signed numbers in TIFF."""

warnings.filterwarnings("ignore", module=r"PIL\.")  # what Pillow cannot decode is an error; the rest is decoded


class PictureError(ValueError):
    """A file of a data set that cannot be decoded; the message names it and says why.

    It may also be raised in the middle of a run whose pictures are decoded when they are needed.

    Args:
        path: path of the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str):
        super().__init__(
            f"dataset: {path} is not a readable image ({reason}); allowed: 8 or unsigned 16 bits a channel, such as "
            "PNG or JPEG"
        )


def read_picture(path: Path, size: int) -> np.ndarray:
    """Read a picture as uint8 ``[size, size, 3]``: the middle square, after the shorter side is scaled to `size`.

    As in torchvision's ImageFolder, an alpha channel and the orientation in EXIF data are ignored. Of 16 bits the upper
    8 are taken.

    Raises:
        PictureError: the file cannot be read, is no picture, has more pixels than Pillow allows, or has numbers whose
            black and white are not defined.
    """
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > _LARGEST_FILE:
                raise ValueError(f"it has more than {_LARGEST_FILE:,} bytes")
            with Image.open(stream) as file:
                if file.format not in _FORMATS:
                    raise ValueError(f"its format is {file.format}")
                image = as_rgb(file)
        return middle_square(image, size)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(path, "its format or kind of numbers is not known") from error
    except Exception as error:  # a damaged or foreign file can raise anything
        raise PictureError(path, getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def middle_square(image: Image.Image, size: int) -> np.ndarray:
    """Return an image as uint8 ``[size, size, 3]``: see `read_picture`."""
    scale = size / min(image.size)
    scaled = [max(size, round(side * scale)) for side in image.size]
    if prod(scaled) > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"with {image.width}x{image.height} pixels it is too narrow")
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in scaled)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an opened picture in 8-bit RGB; raise a ValueError if its numbers have no defined black and white."""
    tags = getattr(image, "tag_v2", {})  # TIFF's
    if image.mode == "F":
        raise ValueError("floats have no defined black and white: convert it")
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ValueError("signed numbers have no defined black and white: convert it")
    if image.mode == "I" and image.format == "TIFF":  # in other formats Pillow puts 16 bits into this mode
        raise ValueError("32-bit numbers have no defined black and white: convert it")
    if image.mode.startswith("I"):
        image = _as_8_bit(image, min(tags.get(_BITS_PER_SAMPLE, (16,))), inverted=tags.get(_WHITE_IS_ZERO) == 0)
    image.info.pop("transparency", None)  # Pillow would warn that it ignores it
    return image.convert("RGB")


def _as_8_bit(image: Image.Image, bits: int, *, inverted: bool) -> Image.Image:
    """Return the upper 8 bits of a gray image of 12 or 16; Pillow's own conversion would clip its numbers.

    Args:
        image: the image.
        bits: bits of its numbers.
        inverted: whether 0 is white.
    """
    upper = (np.asarray(image).astype(np.uint32) >> (bits - 8)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(255 - upper if inverted else upper)
