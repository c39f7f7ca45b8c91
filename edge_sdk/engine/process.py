"""The build in a process of its own: what TensorRT breaks, or the kernel kills for memory, is not this one."""

from __future__ import annotations

import ctypes
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec

from ..apart import run_apart
from ..errors import BackendError, ConfigError, DeviceError, EdgeSDKError, MissingExtra
from ..files import write_aside
from .build import OUT_OF_MEMORY, EngineLayer, EngineOptions, build_engine
from .library import LibraryName, load_library

__all__ = ["BuiltEngine", "available_memory", "build_apart"]

LIBRARY_BYTES = 512 << 20
WEIGHT_COPIES = 4
"""What a build takes beside its workspace, as seen with TensorRT for RTX: its libraries, and the weights some times."""

FAILED = 3
"""Exit status of a child that left word of what was wrong; Python itself ends with 1 or 2."""


_DIE_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""


class BuiltEngine(msgspec.Struct, frozen=True):
    """An engine, the library and version that built it, with which options, and the layers it was built from."""

    content: bytes
    library: LibraryName
    version: str
    options: EngineOptions
    layers: tuple[EngineLayer, ...]


class _Failed(msgspec.Struct, frozen=True):
    kind: str
    message: str


class _Request(msgspec.Struct, frozen=True):
    library: LibraryName
    options: EngineOptions
    onnx: bytes


def build_apart(
    onnx: bytes, options: EngineOptions, library: LibraryName, *, shared_memory: bool = False
) -> BuiltEngine:
    """Build an engine in a child process.

    Where the GPU shares the CPU's memory, the workspace is at most half of what is free, unless the options say.

    Args:
        onnx: the file's content.
        options: what for.
        library: to build with.
        shared_memory: whether it does.

    Raises:
        DeviceError: too little memory is free, or the child was killed for it.
        BackendError: TensorRT refuses the model, or crashed.
        ConfigError: options that the library does not have.
        MissingExtra: the library is not installed.
    """
    options = _within_memory(onnx, options, shared_memory)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        request = msgspec.msgpack.encode(_Request(library, options, onnx))
        done = run_apart(f"{__name__}:{_main.__name__}", str(answer), content=request)
        if done.returncode == 0:
            return msgspec.msgpack.decode(answer.read_bytes(), type=BuiltEngine)
        if done.returncode == FAILED:
            failed = msgspec.msgpack.decode(answer.read_bytes(), type=_Failed)
            kinds = {kind.__name__: kind for kind in (BackendError, ConfigError, DeviceError, MissingExtra)}
            raise kinds.get(failed.kind, BackendError)(failed.message)
    raise _died(done.returncode, done.stderr.decode(errors="replace"))


def _within_memory(onnx: bytes, options: EngineOptions, shared_memory: bool) -> EngineOptions:
    free = available_memory()
    if free is None:
        return options
    needed = LIBRARY_BYTES + WEIGHT_COPIES * len(onnx)
    room = free + _free_swap()  # into which other processes can go
    if room < needed:
        raise DeviceError(
            f"{room >> 20} MiB of memory are free, swap included, building this engine takes about "
            f"{needed >> 20} MiB; close the desktop (it takes some 800 MB), add a swap file, or choose fp16"
        )
    if options.workspace_bytes is None and shared_memory:
        return msgspec.structs.replace(options, workspace_bytes=free // 2)
    return options


def available_memory() -> int | None:
    """Bytes that a new process can have without swapping, in this container; None where the system does not tell."""
    return min([*_meminfo("MemAvailable"), *_left_in_container()], default=None)


def _free_swap() -> int:
    """Bytes; none where a container's limit counts, which says nothing of swap."""
    return 0 if _left_in_container() else sum(_meminfo("SwapFree"))


def _meminfo(name: str) -> list[int]:
    """Bytes; empty where the system does not tell."""
    try:
        with open("/proc/meminfo") as file:
            return [int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:")]
    except OSError:
        return []


def _left_in_container(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Of its memory limit, by control groups version 2: within a container its own are at the root.

    What files take of it is given back when it is needed.
    """
    try:
        limit, used = (int((root / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        files = sum(int(counts[f"{kind}_file"]) for kind in ("active", "inactive"))
    except (OSError, ValueError, KeyError):  # none, or "max"
        return []
    return [max(limit - max(used - files, 0), 0)]


def _died(status: int, text: str) -> EdgeSDKError:
    last = text.strip().splitlines()[-1:]
    if status == -signal.SIGKILL:
        return DeviceError(
            f"the process that built the engine was killed, most likely for want of memory; {OUT_OF_MEMORY}"
        )
    if status < 0:
        name = signal.Signals(-status).name
        return BackendError(f"TensorRT crashed while it built the engine ({name}); {''.join(last)}".rstrip("; "))
    return BackendError(f"the process that builds engines failed with status {status}: {''.join(last)}")


def _main(path: str) -> int:
    answer = Path(path)
    with suppress(AttributeError, OSError):  # a build takes minutes, and the GPU: it must not outlive who waits for it
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Request)
    try:
        library = load_library(request.library)
        content, layers = build_engine(request.onnx, request.options, library)
    except EdgeSDKError as error:
        write_aside(answer, msgspec.msgpack.encode(_Failed(type(error).__name__, str(error))))
        return FAILED
    built = BuiltEngine(content, library.name, library.version, request.options, layers)
    write_aside(answer, msgspec.msgpack.encode(built))
    return 0
