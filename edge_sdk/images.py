"""Image files to the uint8 arrays that an encoder takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import DataError

__all__ = ["LabelledImage", "decode_image", "find_images", "fit_image"]


_REFUSED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats of Pillow's that are no photographs: it cannot read them, or starts another program for it."""


class LabelledImage(NamedTuple):
    """A file and its class, or None where the folder says nothing of classes."""

    path: Path
    label: str | None


def decode_image(source: Path | IO[bytes], name: str = "") -> Image.Image:
    """A photograph of any format that Pillow reads, as an upright RGB image of its own size; transparency is dropped.

    Args:
        source: a path, or an open binary file.
        name: what an error calls an open file.

    Raises:
        DataError: the file is missing, no image, truncated, or larger than Pillow's limit against image bombs.
    """
    try:
        with Image.open(source, formats=_formats()) as image:
            if image.mode == "F":
                raise ValueError("its values are floating-point, of no known range")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255
                upright = upright.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            return upright.convert("RGB")
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        # Of an open file Pillow would show the object.
        why = "no format that it knows" if name and isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name or source}: not an image that Pillow can read ({why})") from error


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _REFUSED)


def fit_image(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """``(height, width, 3)`` uint8: the largest centred crop of that aspect ratio, resized (bicubic, antialiased)."""
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def find_images(paths: Sequence[Path]) -> list[LabelledImage]:
    """Files as given; a folder stands for the images below it, sorted.

    An image in a folder's sub-folder gets the sub-folder's name as its class. Links are followed; what a leading dot
    hides is left out.

    Raises:
        DataError: a path does not exist, or a folder holds no image.
    """
    found: list[LabelledImage] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if not path.is_dir():
            found.append(LabelledImage(path, None))
            continue
        suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in _formats()}
        files = sorted(f for f in _files(path) if f.suffix.lower() in suffixes and f.is_file())
        if not files:
            raise DataError(f"{path}: no image in this folder; expected image files, or CLASS/ folders of them")
        found += [LabelledImage(f, f.relative_to(path).parts[0] if f.parent != path else None) for f in files]
    return found


def _files(folder: Path) -> Iterator[Path]:
    """All that are not hidden; a link back to a folder above leads nowhere."""
    for where, folders, names in os.walk(folder, followlinks=True):
        here = Path(where)
        above = {each.resolve() for each in (here, *here.parents)}
        folders[:] = [f for f in folders if not f.startswith(".") and (here / f).resolve() not in above]
        yield from (here / name for name in names if not name.startswith("."))
