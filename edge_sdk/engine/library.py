"""The TensorRT that is installed: 10 or 11, or TensorRT for RTX, which builds without a GPU.

What a version can do is found by looking for names, never by comparing version numbers.
"""

from __future__ import annotations

import functools
import re
from importlib import import_module
from typing import Any, Literal, NamedTuple

from ..errors import BackendError, MissingExtra

__all__ = ["LibraryName", "MessageLog", "TensorRT", "load_library"]

LibraryName = Literal["tensorrt", "tensorrt_rtx"]


WANT_OF_MEMORY = re.compile(
    r"out ?of ?memory|insufficient (memory|workspace)|memory is insufficient|could not be allocated|workspace limit"
    r"|NvMapMemAlloc",
    re.IGNORECASE,
)
NO_LAYER = "Could not find any implementation"
"""An error whose reason the warnings before it tell; those come with builds that succeed as well."""


class MessageLog:
    """What TensorRT had to say: errors, and warnings."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, bool]] = []

    def add(self, message: str, *, is_error: bool) -> None:
        self._messages.append((message.strip(), is_error))

    def clear(self) -> None:
        self._messages.clear()

    def text(self) -> str:
        """All of it on one line, the same message once; what led to an error comes first."""
        return "; ".join(dict.fromkeys(message for message, _ in self._messages))

    @property
    def wants_memory(self) -> bool:
        """Whether memory was what an error was about."""
        errors = "; ".join(message for message, is_error in self._messages if is_error)
        return bool(WANT_OF_MEMORY.search(self.text() if NO_LAYER in errors else errors))


class TensorRT(NamedTuple):
    """The imported package, its version, the one logger that a process may have, and what that heard."""

    name: LibraryName
    module: Any
    version: str
    logger: Any
    log: MessageLog

    @property
    def strongly_typed(self) -> bool:
        """Whether a network can be made to keep the types of its ONNX: 10.0 on.

        Older ones are no use here for another reason as well: they read ONNX up to opset 17, and what a later graph
        reduces over as an input they do not see, and reduce over all axes without a word.
        """
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def too_old(self) -> str:
        """Why it cannot build our graphs; empty where it can."""
        if self.strongly_typed:
            return ""
        return (
            f"{self.name} {self.version} reads ONNX up to opset 17, these graphs have 20; TensorRT 10.0 is the oldest: "
            "on an Orin update to JetPack 6.1 or later, else stay with --backend onnxruntime"
        )

    def new(self, kind: Any) -> Any:
        """A builder or runtime of this library, which ask for the GPU.

        Raises:
            BackendError: the library gives none; the message says what it logged.
        """
        try:
            return kind(self.logger)
        except TypeError as error:  # pybind11's word for a factory that returns nothing
            said = self.log.text() or str(error)
            raise BackendError(f"{self.name} {self.version} cannot start: {said}") from error

    def network_flags(self) -> int:
        """Those that every network of ours is created with, as far as this version knows them."""
        flags = self.module.NetworkDefinitionCreationFlag
        batch = 1 << int(flags.EXPLICIT_BATCH) if hasattr(flags, "EXPLICIT_BATCH") else 0  # no effect in 10, none in 11
        return batch | (1 << int(flags.STRONGLY_TYPED) if self.strongly_typed else 0)


@functools.cache
def load_library(name: LibraryName) -> TensorRT:
    """Import a TensorRT.

    Args:
        name: ``tensorrt``, or ``tensorrt_rtx`` for TensorRT for RTX.

    Raises:
        MissingExtra: it is not installed.
        BackendError: it is installed and cannot be imported.
    """
    try:
        module = import_module(name)
    except (ImportError, OSError) as failed:
        if isinstance(failed, ModuleNotFoundError) and failed.name == name:
            raise MissingExtra(_how_to_install(name)) from failed
        raise BackendError(f"{name} is installed and cannot be imported: {failed}") from failed
    log = MessageLog()

    base: Any = module.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(base.WARNING):
                log.add(message, is_error=int(severity) <= int(base.ERROR))

    return TensorRT(name, module, str(module.__version__), Logger(), log)


def _how_to_install(name: LibraryName) -> str:
    if name == "tensorrt_rtx":
        return "TensorRT for RTX is not installed: pip install 'edgesdk[rtx]'"
    return (
        "TensorRT is not installed for this Python. On a Jetson it comes with JetPack, for the system's Python alone: "
        "make the virtual environment with --system-site-packages. On a PC: pip install 'edgesdk[tensorrt]'"
    )
