"""Every error that a user's input, files or network can cause.

EdgeSDKError
├── BundleError          a bundle is missing a file, was altered, or is of another version
├── ConfigError          a setting has a value that it cannot have (also ValueError)
├── DataError            an image, data set or checkpoint cannot be used
├── LeakageError         a model's audit is missing, or finds more than was allowed
├── TensorError          a tensor's name, dtype, shape or values are not the declared ones (also ValueError)
├── BackendError         an inference library refused a model or failed in it
├── OverloadError        more requests wait for a served model than may
├── ExpiredError         a request was not begun before its deadline
├── UnknownModelError    a server was asked for a model that it has not
├── ForbiddenError       a server was asked for what it does not do
├── RemoteError          a server could not be reached or failed
│   ├── RemoteTimeout    it did not answer in time
│   ├── RemoteRejected   it refused the request; ``status`` is its HTTP status
│   └── CollusionError   two shares of one image would reach one server
├── MissingExtra         a package of an optional extra is not installed (also ImportError)
└── DeviceError          the device cannot do what was asked

Anything else that escapes is a fault of this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "BackendError",
    "BundleError",
    "CollusionError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "EdgeSDKError",
    "ExpiredError",
    "ForbiddenError",
    "LeakageError",
    "MissingExtra",
    "OverloadError",
    "RemoteError",
    "RemoteRejected",
    "RemoteTimeout",
    "TensorError",
    "UnknownModelError",
    "needs_extra",
    "reason",
]


class EdgeSDKError(Exception):
    """Base of the family: the message says what was wrong with which object, and what to do."""


class BundleError(EdgeSDKError):
    """A bundle is missing a file, was altered, or is of another version."""


class ConfigError(EdgeSDKError, ValueError):
    """A setting has a value that it cannot have."""


class DataError(EdgeSDKError):
    """An image, data set or checkpoint cannot be used."""


class LeakageError(EdgeSDKError):
    """A model's audit is missing, or finds more than was allowed."""


class TensorError(EdgeSDKError, ValueError):
    """A tensor's name, dtype, shape or values are not the declared ones."""


class BackendError(EdgeSDKError):
    """An inference library refused a model or failed in it."""


class OverloadError(EdgeSDKError):
    """More requests wait for a served model than may."""


class ExpiredError(EdgeSDKError):
    """A request was not begun before its deadline."""


class UnknownModelError(EdgeSDKError):
    """A server was asked for a model that it has not."""


class ForbiddenError(EdgeSDKError):
    """A server was asked for what it does not do."""


class RemoteError(EdgeSDKError):
    """A server could not be reached or failed."""


class RemoteTimeout(RemoteError):
    """A server did not answer in time."""


class RemoteRejected(RemoteError):
    """A server refused the request.

    Attributes:
        status: the HTTP status of its answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class CollusionError(RemoteError):
    """Two shares of one image would reach one server."""


class MissingExtra(EdgeSDKError, ImportError):
    """A package of an optional extra is not installed."""


class DeviceError(EdgeSDKError):
    """The device cannot do what was asked."""


def reason(error: Exception) -> str:
    """Why it happened, without number and file name where the system says it in words."""
    return getattr(error, "strerror", None) or str(error)


def words_of(message: str) -> str:
    """A message less the numbers that stand by themselves, and not within a name: they may be a tensor's values."""
    return _NUMBER.sub("#", message)


_NUMBER = re.compile(r"(?<![\w.])[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Turn a failed import of a third-party package inside the block into a MissingExtra that says what to install.

    Raises:
        MissingExtra: a package that the block imports is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("edge_sdk", "export", "cloud"):
            raise  # our own fault, not a missing extra
        raise MissingExtra(
            f"{purpose} needs {package}, which is not installed: pip install 'edgesdk[{extra}]'"
        ) from error
