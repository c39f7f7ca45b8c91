"""Fixed, hashed splits of a data set: train, validation, auxiliary (for attackers) and test.

An image's part follows from its bytes and the seed alone, so that it does not depend on file names or order, two
copies of one image land on the same side, and an attacker's images are disjoint from the defender's.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_sdk.errors import DataError
from edge_sdk.files import cache_folder
from edge_sdk.images import decode_image, find_images, fit_image
from edge_sdk.progress import track

from . import cifar

AUXILIARY_SHARE = 0.20
VALIDATION_SHARE = 0.04
TEST_SHARE = 0.15
"""Of the training images; the last only where a data set brings no test images of its own."""


@dataclass(frozen=True)
class Images:
    """``pixels`` uint8 ``(N, H, W, 3)``, ``labels`` int64 ``(N,)``; ``sha256`` of the sorted hashes of the images."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sha256: str

    def __len__(self) -> int:
        return len(self.labels)


class Splits(NamedTuple):
    """A data set in four parts. Train, validation and auxiliary are disjoint; ``test`` is as the data set brings it."""

    name: str
    class_names: tuple[str, ...]
    train: Images
    validation: Images
    auxiliary: Images
    test: Images
    seed: int

    def record(self) -> dict[str, object]:
        """What a checkpoint and a manifest say of the data: name, seed, and count and hash of every part."""
        parts = ("train", "validation", "auxiliary", "test")
        images = {part: getattr(self, part) for part in parts}
        counts = {part: {"num_images": len(each), "sha256": each.sha256} for part, each in images.items()}
        return {"name": self.name, "seed": self.seed, "num_classes": len(self.class_names), "parts": counts}


class _Source(NamedTuple):
    """Images of one side with the hash of each one's original bytes."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    keys: list[str]


def load_splits(data: str, image_size: int, seed: int = 0) -> Splits:
    """A data set, resized to ``image_size`` squares, in fixed parts.

    Args:
        data: ``cifar10`` or ``cifar100`` (fetched unless cached), or a path: one of their archives (binary or python
            version), an unpacked one, an image folder (``train/CLASS/*`` and optionally ``test/CLASS/*``, or
            ``CLASS/*``), or a tar of such a folder.
        image_size: height and width in pixels.
        seed: another seed gives other train, validation and auxiliary parts.

    Raises:
        DataError: no such data, or not in one of these forms.
    """
    name, train, test, class_names = _read(data, image_size)
    order = sorted(range(len(train.keys)), key=lambda i: hashlib.sha256(f"{seed}:{train.keys[i]}".encode()).digest())
    if test is None:
        cut = _boundary(train.keys, order, round(len(order) * TEST_SHARE))
        test, order = _take(train, order[:cut]), order[cut:]
    num_auxiliary = _boundary(train.keys, order, round(len(order) * AUXILIARY_SHARE))
    rest = order[num_auxiliary:]
    num_validation = _boundary(train.keys, rest, round(len(rest) * VALIDATION_SHARE))
    parts = (rest[num_validation:], rest[:num_validation], order[:num_auxiliary])
    if not all(parts) or not len(test.labels):
        raise DataError(f"{data}: {len(train.keys)} training images are too few to split; at least 100 are needed")
    images = (_images(_take(train, sorted(part))) for part in parts)
    return Splits(name, class_names, *images, test=_images(test), seed=seed)


def image_folder(data: str) -> Path:
    """A folder of the data set's test images, in CLASS/ sub-folders; written to the cache where it is no folder yet.

    Args:
        data: as ``load_splits``; a folder without test/ stands for itself.

    Raises:
        DataError: no such data, or not in one of these forms.
    """
    path, files = _locate(data)
    if files is None:
        return path / "test" if (path / "test").is_dir() else path
    arrays = cifar.read_files(files, data)["test"]
    key = hashlib.sha256(arrays.images.tobytes()).hexdigest()[:16]
    target = cache_folder() / f"{path.name.partition('.')[0]}-test-{key}"

    def write(aside: Path) -> None:
        for name in arrays.class_names:
            (aside / name).mkdir()
        pairs = zip(arrays.images, arrays.labels, strict=True)
        for i, (pixels, label) in enumerate(track(pairs, len(arrays.labels), "writing test images")):
            Image.fromarray(pixels).save(aside / arrays.class_names[label] / f"{i:05}.png")

    _make_once(target, write)
    return target


def _boundary(keys: list[str], order: list[int], cut: int) -> int:
    """Move a cut forward past copies of the image before it: equal keys are neighbours in the order."""
    while 0 < cut < len(order) and keys[order[cut]] == keys[order[cut - 1]]:
        cut += 1
    return cut


def _without(source: _Source, keys: set[str], data: str) -> _Source:
    """Images that are test images as well are not trained on."""
    kept = [i for i, key in enumerate(source.keys) if key not in keys]
    if len(kept) == len(source.keys):
        return source
    warnings.warn(
        f"{data}: {len(source.keys) - len(kept)} training images left out: they are test images", stacklevel=2
    )
    return _take(source, kept)


def _take(source: _Source, indices: Sequence[int]) -> _Source:
    rows = np.asarray(indices, dtype=np.int64)
    return _Source(source.pixels[rows], source.labels[rows], [source.keys[i] for i in indices])


def _images(source: _Source) -> Images:
    return Images(source.pixels, source.labels, hashlib.sha256("".join(sorted(source.keys)).encode()).hexdigest())


def _read(data: str, image_size: int) -> tuple[str, _Source, _Source | None, tuple[str, ...]]:
    path, files = _locate(data)
    name = data if data in cifar.ARCHIVES else Path(data).resolve().name.partition(".")[0]
    if files is not None:
        arrays = cifar.read_files(files, data)
        train, test = (_from_arrays(arrays[part], image_size) for part in ("train", "test"))
        return name, _without(train, set(test.keys), data), test, arrays["train"].class_names
    return (name, *_from_folder(path, image_size))


def _locate(data: str) -> tuple[Path, dict[str, bytes] | None]:
    """The path of a data set, fetched or unpacked if need be; with its files if it is one of the CIFAR archives."""
    path = cifar.fetch(data, cache_folder()) if data in cifar.ARCHIVES else Path(data)
    if not path.exists():
        raise DataError(f"{data}: no such file or folder; expected a path or one of {', '.join(cifar.ARCHIVES)}")
    if path.is_file():
        files = cifar.read_tar(path)
        return (_unpack(path), None) if files is None else (path, files)
    names = {f.name for f in path.iterdir() if f.is_file()}
    return path, ({f: (path / f).read_bytes() for f in names} if cifar.is_cifar(names) else None)


def _unpack(path: Path) -> Path:
    """A tar of an image folder, unpacked once into the cache, keyed by path, size and time of change."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_folder() / f"{path.name.partition('.')[0]}-{key}"

    def extract(aside: Path) -> None:
        try:
            with tarfile.open(path) as tar:
                members = tar.getmembers()
                needed, free = sum(member.size for member in members), shutil.disk_usage(aside).free
                if needed > free:
                    raise DataError(f"{path}: {needed} bytes unpacked, and {free} are free in {aside.parent}")
                _extract(tar, members, aside)
        except cifar.TAR_ERRORS as error:
            raise DataError(f"{path}: cannot be unpacked ({error})") from error

    _make_once(target, extract)
    inner = [p for p in target.iterdir() if not p.name.startswith(".")]
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else target


def _extract(tar: tarfile.TarFile, members: list[tarfile.TarInfo], into: Path) -> None:
    """Files and folders, none outside ``into``.

    Python has a filter for that from 3.10.12 and 3.11.4 on; Debian 12 has 3.11.2.
    """
    if hasattr(tarfile, "data_filter"):
        tar.extractall(into, members, filter="data")
        return
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not (member.isreg() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is a link, or would be written elsewhere")
    tar.extractall(into, members)  # noqa: S202 - looked at above


def _make_once(target: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder aside, then rename it into place; another process may have been first."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        write(aside)
        try:
            aside.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _from_arrays(arrays: cifar.Arrays, image_size: int) -> _Source:
    keys = [hashlib.sha256(image.tobytes()).hexdigest() for image in arrays.images]
    pixels = arrays.images
    if pixels.shape[1] != image_size:
        resized = (fit_image(Image.fromarray(image), image_size, image_size) for image in pixels)
        pixels = np.stack(list(track(resized, len(pixels), "resizing")))
    return _Source(pixels, arrays.labels, keys)


def _from_folder(path: Path, image_size: int) -> tuple[_Source, _Source | None, tuple[str, ...]]:
    train_folder = path / "train" if (path / "train").is_dir() else path
    class_names = tuple(sorted(p.name for p in train_folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
    for class_name in class_names:
        if not class_name.isprintable():  # no text that a manifest could hold, among others
            raise DataError(f"{path}: {class_name!r} is no class name; rename the folder")
    if len(class_names) < 2:
        raise DataError(f"{path}: {len(class_names)} class folders found; expected train/CLASS/*.jpg of two or more")
    test_folder = path / "test"
    test = None
    if train_folder is not path and test_folder.is_dir():
        test = _from_class_folders(test_folder, class_names, image_size)
    if train_folder is path:
        for name in class_names:
            _check_depth(path / name)
    train = _from_class_folders(train_folder, class_names, image_size)
    if test is not None:
        train = _without(train, set(test.keys), str(path))
    empty = [name for i, name in enumerate(class_names) if not (train.labels == i).any()]
    if empty:
        raise DataError(f"{path}: no training image of {', '.join(empty)}; remove such folders, or fill them")
    return train, test, class_names


def _check_depth(folder: Path) -> None:
    """A data set's own parts, train and test under whatever names, must not be taken for classes."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    below = [path for path in inside if path.is_dir()]
    if len(below) > 1 and len(below) == len(inside):
        raise DataError(
            f"{folder}: no image of its own, only in {len(below)} folders; if those are the classes, expected are "
            "train/CLASS/* and test/CLASS/*"
        )


def _from_class_folders(folder: Path, class_names: tuple[str, ...], image_size: int) -> _Source:
    found = find_images([folder])
    unknown = {image.label for image in found} - set(class_names)
    if unknown:
        raise DataError(f"{folder}: images outside the training classes, in {sorted(map(str, unknown))}")
    pixels = np.empty((len(found), image_size, image_size, 3), np.uint8)
    keys = []
    for i, image in enumerate(track(found, len(found), f"reading {folder.parent.name}/{folder.name}")):
        content = image.path.read_bytes()
        keys.append(hashlib.sha256(content).hexdigest())
        pixels[i] = fit_image(decode_image(io.BytesIO(content), str(image.path)), image_size, image_size)
    index = {name: i for i, name in enumerate(class_names)}
    labels = np.array([index[image.label or ""] for image in found], dtype=np.int64)
    return _Source(pixels, labels, keys)
