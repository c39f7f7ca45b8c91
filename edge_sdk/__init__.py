"""Split inference with a defended encoder on the device and its tail in the cloud: the device's side.

``EdgeRuntime`` opens a bundle's edge folder and classifies images with the servers' help; ``Client`` talks to one
Open Inference Protocol server; every error a user can cause is an ``EdgeSDKError``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends import Execution
    from .client import Client
    from .errors import EdgeSDKError
    from .runtime import EdgeRuntime, Prediction

__all__ = ["Client", "EdgeRuntime", "EdgeSDKError", "Execution", "Prediction", "__version__"]

__version__ = "0.1.0"

_HOMES = {
    "Client": "client",
    "EdgeRuntime": "runtime",
    "EdgeSDKError": "errors",
    "Execution": "backends",
    "Prediction": "runtime",
}


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): `edgesdk --help` must not wait for numpy and requests.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
