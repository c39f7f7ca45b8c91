"""Engines that were built before, kept by everything that an engine depends on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..errors import DataError
from ..files import blocking, cache_folder, write_aside
from .build import EngineLayer, EngineOptions
from .gpu import Gpu
from .library import LibraryName
from .process import build_apart

__all__ = ["CachedEngine", "EngineRecord", "cached_engine", "engine_key"]


RECIPE = 2
"""Of how ``build_engine`` builds: to be raised where the same options give another engine."""


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a kept engine is of.

    Attributes:
        sha256: of the engine's file.
        onnx_sha256: of the model that it was built from.
        library: that built it, and the only one that can run it.
        version: of the library, as far as its Python package tells: JetPack 6's has three of the four numbers.
        gpu: that it was built on; None for an engine that was built for other GPUs.
        options: what it was built for, with the workspace that it was built with where that was limited.
        layers: of the network.
    """

    sha256: str
    onnx_sha256: str
    library: LibraryName
    version: str
    gpu: Gpu | None
    options: EngineOptions
    layers: tuple[EngineLayer, ...]


class CachedEngine(NamedTuple):
    """An engine, its record, the file it is kept in, and whether it was there already."""

    content: bytes
    record: EngineRecord
    path: Path
    found: bool


def engine_key(onnx: bytes, options: EngineOptions, library: LibraryName, version: str, gpu: Gpu | None) -> str:
    """Hex SHA-256 of everything that an engine depends on; not of the memory that its building may take."""
    wanted = msgspec.structs.replace(options, workspace_bytes=None)
    parts = [RECIPE, hashlib.sha256(onnx).hexdigest(), wanted, library, version, gpu]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def cached_engine(
    part: str,
    onnx: bytes,
    options: EngineOptions,
    library: LibraryName,
    version: str,
    gpu: Gpu | None,
    folder: Path | None = None,
    *,
    anew: bool = False,
) -> CachedEngine:
    """The engine that was built of this before, or a new one; a kept one that is damaged is built again.

    So is one that was built with another workspace than is asked for: with more, TensorRT may find faster layers.

    Args:
        part: its name, for the file's.
        onnx: the model's content.
        options: what the engine is for.
        library: that builds it.
        version: of the library.
        gpu: of this machine; None where ``options.targets`` names others.
        folder: that engines are kept in; None takes ``engines`` of the cache folder.
        anew: build it though there is one.

    Raises:
        DataError: the folder cannot be written to.
        DeviceError, BackendError, ConfigError, MissingExtra: as for ``build_apart``.
    """
    folder = cache_folder() / "engines" if folder is None else folder
    path = folder / f"{part}-{engine_key(onnx, options, library, version, gpu)[:32]}.engine"
    note = path.with_suffix(".json")
    kept = _kept(path, note)
    asked = options.workspace_bytes
    if not anew and kept is not None and asked in (None, kept.record.options.workspace_bytes):
        return kept
    if above := blocking(folder):  # before minutes of building
        raise DataError(
            f"{folder}: engines cannot be kept there, {above} is not a folder that can be written to; choose another "
            "--out, or set EDGESDK_CACHE"
        )
    built = build_apart(onnx, options, library, shared_memory=gpu is not None and gpu.integrated)
    record = EngineRecord(
        sha256=hashlib.sha256(built.content).hexdigest(),
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        library=library,
        version=built.version,
        gpu=gpu,
        options=built.options,
        layers=built.layers,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(path, built.content)
        write_aside(note, msgspec.json.format(msgspec.json.encode(record), indent=1))
    except OSError as error:
        raise DataError(f"{folder}: the engine cannot be kept there ({error.strerror})") from error
    return CachedEngine(built.content, record, path, False)


def _kept(path: Path, note: Path) -> CachedEngine | None:
    """None where it is not there, is of an older form, or is not the one that its record is of."""
    try:
        content, record = path.read_bytes(), msgspec.json.decode(note.read_bytes(), type=EngineRecord)
    except (OSError, msgspec.MsgspecError):
        return None
    whole = hashlib.sha256(content).hexdigest() == record.sha256
    return CachedEngine(content, record, path, True) if whole else None
