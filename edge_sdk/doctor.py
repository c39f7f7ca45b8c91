"""What works on this machine, and what to install or set for the rest."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec

from . import __version__, jetson
from .engine.gpu import Gpu, cuda
from .engine.library import LibraryName, load_library
from .engine.process import available_memory
from .errors import BackendError, EdgeSDKError, MissingExtra
from .files import blocking, cache_folder
from .profile.machine import processor_name
from .sysfs import read_text

__all__ = ["Check", "examine"]

TESTED_PYTHONS = ((3, 10), (3, 12))
LOCAL = Path("/usr/local")
LITTLE_MEMORY = 1 << 30
NONE_FITS = "no JetPack for this module has that (the last for a Xavier is 5, with Python 3.8, for a Nano or TX2 4)"


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        name: of it.
        state: ``ok``; ``warn``, it works and could be better; ``missing``, what it is for does not work here.
        found: what is there.
        advice: what to do, where there is something to do.
    """

    name: str
    state: Literal["ok", "warn", "missing"]
    found: str
    advice: str | None = None


def examine() -> list[Check]:
    """Look at this machine, from the interpreter to the GPU; nothing is changed."""
    checks: list[Check] = []
    for look in (_python, _onnxruntime, _machine, _toolkit, _gpu, _tensorrt, _rtx, _memory, _cache):
        checks += look()
    return checks


def _python() -> Iterator[Check]:
    version, (low, high) = platform.python_version(), TESTED_PYTHONS
    yield Check("edgesdk", "ok", __version__)
    if low <= sys.version_info[:2] <= high:
        yield Check("Python", "ok", version)
    else:
        yield Check("Python", "warn", version, f"tested on {low[0]}.{low[1]} to {high[0]}.{high[1]}")


def _onnxruntime() -> Iterator[Check]:
    try:
        import onnxruntime
    except ImportError as error:
        yield Check("ONNX Runtime", "missing", str(error), "pip install onnxruntime")
        return
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    yield Check("ONNX Runtime", "ok", f"{onnxruntime.__version__} ({providers})")


def _machine() -> Iterator[Check]:
    yield Check("machine", "ok", f"{processor_name()}, {os.cpu_count()} CPUs, {platform.machine()}")
    if not jetson.is_jetson():
        return
    release = read_text(jetson.RELEASE_FILE) or ""
    l4t = jetson.l4t_version(release)
    known = jetson.jetpack(l4t) if l4t else None
    if l4t is None or known is None:
        yield Check("JetPack", "warn", release[:80] or "not known", "not one that is known here")
    else:
        yield _jetpack(l4t, known, processor_name())
    mode = jetson.power_mode()
    yield Check("power mode", "ok" if mode else "warn", mode or "not known", None if mode else "is nvpmodel installed?")
    clock = jetson.gpu_clock()
    if clock is None:
        yield Check("GPU clock", "warn", "not known", "measured times will not say what clock they are of")
    else:
        advice = None if clock.locked else "sudo jetson_clocks before measuring: an idle clock makes times vary"
        found = f"{clock.now} MHz, {clock.lowest} to {clock.highest} allowed"
        yield Check("GPU clock", "ok" if clock.locked else "warn", found, advice)


def _jetpack(l4t: str, known: jetson.JetPack, module: str) -> Check:
    found = f"{known.name} (L4T {l4t}), with TensorRT {known.tensorrt} for Python {known.python}"
    if known.python in ("3.6", "3.8"):
        new = "update to JetPack 6.1 or 7, or " if "Orin" in module else f"{NONE_FITS}; "
        advice = (
            f"its TensorRT is for Python {known.python}, edgesdk for 3.10 and later: {new}"
            "stay with --backend onnxruntime, on the CPU"
        )
        return Check("JetPack", "missing", found, advice)
    if known.tensorrt == "8.6":
        state: Literal["warn", "missing"] = "warn" if _tensorrt_reads_us() else "missing"  # one installed beside it
        return Check("JetPack", state, found, "its TensorRT is too old: update to JetPack 6.1 or later")
    if known.python != f"{sys.version_info[0]}.{sys.version_info[1]}":
        return Check("JetPack", "warn", found, f"use Python {known.python}, or TensorRT cannot be imported")
    return Check("JetPack", "ok", found)


def _toolkit() -> Iterator[Check]:
    """CUDA's compiler and headers, which pycuda is built with."""
    # The link first, which names the one in use.
    places = [LOCAL / "cuda/bin/nvcc", *sorted(LOCAL.glob("cuda-*/bin/nvcc"), key=_release, reverse=True)]
    compiler = shutil.which("nvcc") or next((str(place) for place in places if place.exists()), None)
    if compiler is None:
        install = "pycuda is compiled with it: on a Jetson sudo apt install nvidia-jetpack, else NVIDIA's CUDA toolkit"
        there = find_spec("pycuda") is not None  # and once it is, it is not needed any more
        yield Check("CUDA toolkit", "warn" if there else "missing", "no nvcc in PATH or /usr/local/cuda*/bin", install)
        return
    try:
        said = subprocess.run(  # noqa: S603  (the compiler of this machine)
            [compiler, "--version"], capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        yield Check("CUDA toolkit", "warn", f"{compiler} does not run: {error}", "install the CUDA toolkit anew")
        return
    release = re.search(r"release ([\d.]+)", said)
    advice = None if shutil.which("nvcc") else f"add {Path(compiler).parent} to PATH before installing pycuda"
    state: Literal["ok", "warn"] = "ok" if advice is None else "warn"
    yield Check("CUDA toolkit", state, f"{release[1] if release else 'unknown version'} ({compiler})", advice)


def _release(compiler: Path) -> list[int]:
    """Of .../cuda-12.6/bin/nvcc."""
    return [int(number) for number in re.findall(r"\d+", compiler.parts[-3])]


def _gpu() -> Iterator[Check]:
    pycuda = _tried("pycuda", _describe_cuda)
    yield pycuda
    if pycuda.state == "ok":
        yield _tried("GPU", _describe_gpu)
    else:
        yield Check("GPU", "missing", "not looked at", "it is looked at by pycuda: see the line above")


def _describe_cuda() -> str:
    driver = cuda()
    version = driver.get_driver_version()
    made_for = ".".join(map(str, driver.get_version()))
    return f"made for CUDA {made_for}; the driver is for CUDA {version // 1000}.{version % 1000 // 10}"


def _describe_gpu() -> str:
    gpu = Gpu.here()
    shared = ", shares the CPU's memory" if gpu.integrated else ""
    return f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.num_sms} SMs{shared}"


def _tensorrt() -> Iterator[Check]:
    yield _tried("TensorRT", lambda: _describe_library("tensorrt"))


def _tensorrt_reads_us() -> bool:
    try:
        return not load_library("tensorrt").too_old
    except EdgeSDKError:
        return False


def _rtx() -> Iterator[Check]:
    if jetson.is_jetson():  # which it does not support
        return
    yield _tried("TensorRT for RTX", lambda: _describe_library("tensorrt_rtx"))


def _describe_library(name: LibraryName) -> str:
    library = load_library(name)
    if library.too_old:
        raise BackendError(library.too_old)
    library.new(library.module.Builder)  # what fails where driver and library do not fit together
    return library.version


def _tried(name: str, describe: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", describe())
    except MissingExtra as error:
        return Check(name, "missing", "not installed", str(error))
    except EdgeSDKError as error:
        return Check(name, "missing", "not usable", str(error))


def _memory() -> Iterator[Check]:
    free = available_memory()
    if free is None:
        yield Check("free memory", "warn", "not known", "see by yourself that 1 GiB is free before building engines")
        return
    little = free < LITTLE_MEMORY
    advice = "building an engine may be killed; close the desktop, or add a swap file" if little else None
    yield Check("free memory", "warn" if little else "ok", f"{free >> 20:,} MiB", advice)


def _cache() -> Iterator[Check]:
    folder = cache_folder()
    if blocking(folder) is None:
        yield Check("cache", "ok", str(folder))
    else:
        advice = "set EDGESDK_CACHE to a folder that can be written to"
        yield Check("cache", "missing", f"{folder} cannot be made or written to", advice)
