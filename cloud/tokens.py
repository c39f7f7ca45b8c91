"""Bearer tokens that a server accepts, from a file that may change while it runs (RFC 6750)."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from pathlib import Path

from edge_sdk.errors import ConfigError, reason

__all__ = ["TokenFile"]

LOOK_SECONDS = 1.0
"""Between looks at whether the file has changed."""

_log = logging.getLogger("edgesdk.cloud")


class TokenFile:
    """One token a line; empty lines and those after ``#`` do not count.

    A file that is gone, cannot be read or holds no token any more lets nobody in, until it does again: so the last
    token can be taken back. Whoever changes it renames a whole one into its place; one half-written closes the door for
    ``LOOK_SECONDS``.

    Raises:
        ConfigError: the file cannot be read, or holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked = time.monotonic()
        self._stamp: Stamp | None
        self._stamp, self._digests = _read(path)

    def allows(self, authorization: bytes | None) -> bool:
        """Whether this value of the header ``Authorization`` is ``Bearer`` and one of the tokens.

        All tokens are compared, by digests of one length, in time that does not depend on where they differ.
        """
        self._look()
        scheme, _, token = (authorization or b"").partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, given)
        return found and scheme.lower() == b"bearer"

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            if _stamp(self._path) != self._stamp:
                self._stamp, self._digests = _read(self._path)
        except (OSError, ConfigError) as error:
            if self._digests:
                _log.error("nobody is let in until there are tokens again: %s", error)
            self._stamp, self._digests = None, []


Stamp = tuple[int, int, int]


def _stamp(path: Path) -> Stamp:
    state = path.stat()
    return state.st_mtime_ns, state.st_size, state.st_ino


def _read(path: Path) -> tuple[Stamp, list[bytes]]:
    try:
        stamp = _stamp(path)
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: tokens cannot be read ({reason(error)})") from error
    tokens = [text for line in lines if (text := line.partition("#")[0].strip())]
    if not tokens:
        raise ConfigError(f"{path}: holds no token; expected one a line")
    return stamp, [hashlib.sha256(token.encode()).digest() for token in tokens]
