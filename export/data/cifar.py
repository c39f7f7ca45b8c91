"""The public CIFAR-10 and CIFAR-100 archives, binary and python version (Krizhevsky, 2009), local or fetched."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import pickle
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DataError
from edge_sdk.progress import track_bytes

MOST_BYTES = 1 << 28
"""Of a file in an archive that is read; CIFAR's largest has 154 MB."""

SITE = "https://www.cs.toronto.edu/~kriz/"


TAR_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
"""What a file that is no tar, or a damaged one, can raise."""


class Archive(NamedTuple):
    """One of the published archives; ``md5`` as their page states it."""

    file: str
    md5: str


ARCHIVES = {
    "cifar10": Archive("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": Archive("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
}
"""What is fetched by name: the binary versions, which need no pickle."""


class Arrays(NamedTuple):
    """``images`` uint8 ``(N, 32, 32, 3)`` and ``labels`` int64 ``(N,)``, with the names of the classes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def is_cifar(names: set[str]) -> bool:
    """Whether these file names (no folders) are those of an unpacked archive."""
    return bool(names & {"data_batch_1", "data_batch_1.bin", "train.bin"}) or {"train", "test", "meta"} <= names


def read_files(files: dict[str, bytes], where: str) -> dict[str, Arrays]:
    """``train`` and ``test`` from an archive's files by name.

    Raises:
        DataError: a file is missing, of the wrong length or malformed.
    """
    try:
        if "data_batch_1.bin" in files:
            names = _text(files["batches.meta.txt"])
            parts = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
            return {part: _binary([files[n] for n in each], names, 1) for part, each in parts.items()}
        if "train.bin" in files:
            names = _text(files["fine_label_names.txt"])
            return {part: _binary([files[f"{part}.bin"]], names, 2) for part in ("train", "test")}
        if "data_batch_1" in files:
            names = _names(_unpickle(files["batches.meta"])[b"label_names"])
            parts = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
            return {part: _python([files[n] for n in each], names, b"labels") for part, each in parts.items()}
        names = _names(_unpickle(files["meta"])[b"fine_label_names"])
        return {part: _python([files[part]], names, b"fine_labels") for part in ("train", "test")}
    except KeyError as error:
        raise DataError(f"{where}: incomplete CIFAR archive, {error} is missing") from error
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError, MemoryError) as error:
        raise DataError(f"{where}: malformed CIFAR archive ({error})") from error


def fetch(name: str, folder: Path) -> Path:
    """The archive in ``folder``, fetched from its authors' site unless it is there, its MD5 checked either way.

    Raises:
        DataError: it could not be fetched, or its MD5 is not the published one.
    """
    import requests

    archive = ARCHIVES[name]
    target = folder / archive.file
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        try:
            with requests.get(SITE + archive.file, stream=True, timeout=30) as response, partial.open("wb") as out:
                response.raise_for_status()
                total = int(response.headers.get("Content-Length", 0))
                for chunk in track_bytes(response.iter_content(1 << 20), total, f"fetching {archive.file}"):
                    out.write(chunk)
            _check_md5(partial, archive)
            partial.rename(target)
        except requests.RequestException as error:
            raise DataError(
                f"{SITE}{archive.file}: could not be fetched ({type(error).__name__}); "
                "fetch it by other means and give its path to --data"
            ) from error
        except OSError as error:
            raise DataError(f"{target}: cannot be written ({error.strerror})") from error
        finally:
            partial.unlink(missing_ok=True)
    else:
        _check_md5(target, archive)
    return target


def read_tar(path: Path) -> dict[str, bytes] | None:
    """The files of a CIFAR archive by name without folders; None for a tar of something else.

    Raises:
        DataError: no readable tar file.
    """
    try:
        with tarfile.open(path) as tar:
            members = [m for m in tar if m.isfile()]
            if not is_cifar({Path(m.name).name for m in members}):
                return None
            return {Path(m.name).name: _read(tar, m) for m in members if m.size <= MOST_BYTES}
    except TAR_ERRORS as error:
        raise DataError(f"{path}: not a readable tar archive ({error})") from error


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _check_md5(path: Path, archive: Archive) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if (found := digest.hexdigest()) != archive.md5:
        raise DataError(f"{path}: MD5 {found} is not the published {archive.md5}; delete the file and fetch it again")


def _text(content: bytes) -> tuple[str, ...]:
    return tuple(content.decode().split())


def _names(labels: list[bytes]) -> tuple[str, ...]:
    return tuple(label.decode() for label in labels)


def _planes(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of 3072 bytes, colour plane by colour plane, to ``(N, 32, 32, 3)``."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _binary(contents: list[bytes], names: tuple[str, ...], label_bytes: int) -> Arrays:
    records = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, label_bytes + 3072)
    labels = records[:, label_bytes - 1].astype(np.int64)
    return _checked(Arrays(_planes(records[:, label_bytes:]), labels, names))


def _python(contents: list[bytes], names: tuple[str, ...], key: bytes) -> Arrays:
    batches = [_unpickle(content) for content in contents]
    images = np.concatenate([_numbers(batch[b"data"]).astype(np.uint8).reshape(-1, 3072) for batch in batches])
    labels = np.concatenate([_numbers(batch[key]).astype(np.int64) for batch in batches])
    return _checked(Arrays(_planes(images), labels, names))


def _checked(arrays: Arrays) -> Arrays:
    if not len(arrays.labels) == len(arrays.images) > 0:
        raise ValueError(f"{len(arrays.labels)} labels for {len(arrays.images)} images")
    if not 0 <= arrays.labels.min() <= arrays.labels.max() < len(arrays.class_names):
        raise ValueError(f"a label outside 0 to {len(arrays.class_names) - 1}")
    names = arrays.class_names
    if len(set(names)) < len(names) or any(not n or n.startswith(".") or set(n) & set("/\\\0") for n in names):
        raise ValueError(f"class names that are not plain and different: {names}"[:200])
    return arrays


class _Pickled:
    """What a pickle says of an array or a dtype. numpy's own classes would take it at its word: a forged dtype has
    numpy follow pointers that the file chose."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dicts, lists, numbers and strings, notes what arrays are said to be, and refuses every other class."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return _Pickled
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them for Python 2
            return lambda text, encoding: text.encode("latin-1")
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no CIFAR file has")


def _unpickle(content: bytes) -> dict[bytes, Any]:
    try:
        loaded = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # of damaged opcodes, nearly anything
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"a dict was expected, found {type(loaded).__name__}")
    return loaded


def _numbers(found: Any) -> NDArray[Any]:
    """Integers of a list, or of an array as it was pickled: ``(version, shape, dtype, is Fortran's order, bytes)``."""
    if not isinstance(found, _Pickled):
        if not isinstance(found, list) or not all(type(each) is int for each in found):
            raise ValueError("neither an array nor a list of integers")
        return np.array(found, np.int64)
    _, shape, dtype, fortran, content = found.state
    name = dtype.arguments[0]
    name = name.decode() if isinstance(name, bytes) else name
    if not re.fullmatch("[iu][1248]", name) or not isinstance(content, bytes) or dtype.state[1] in (">", b">"):
        raise ValueError(f"an array of {name!r}, not of integers")
    return np.frombuffer(content, name).reshape([int(size) for size in shape], order="F" if fortran else "C")
