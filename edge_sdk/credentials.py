"""What a client shows to a server, and by what it knows the right one."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from .errors import ConfigError, reason
from .pem import load_authorities, load_identity

__all__ = ["NO_CREDENTIALS", "Credentials", "is_loopback", "read_token"]


class Credentials(NamedTuple):
    """Of one client for one server.

    Attributes:
        token_file: a bearer token in its first line. It is sent over TLS alone, or to this machine.
        ca_file: PEM certificates that the server's must be signed by; None takes those that requests ships with.
        certificate: PEM, of this client, for a server that asks for one.
        key: PEM, of that certificate; None where the certificate's file holds it.
    """

    token_file: Path | None = None
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def check(self, url: str) -> None:
        """Refuse what cannot work with this server, before anything is sent.

        Raises:
            ConfigError: the token would travel in the clear, a file cannot be read, or key and certificate do not fit.
        """
        parts = urlsplit(url)
        if self.token_file is not None and parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            raise ConfigError(f"{url}: a token would travel unencrypted; use https")
        if self.key is not None and self.certificate is None:
            raise ConfigError(f"{self.key}: a key needs the certificate that it belongs to")
        context = ssl.create_default_context()
        if self.ca_file is not None:
            load_authorities(context, self.ca_file)
        if self.certificate is not None:
            load_identity(context, self.certificate, self.key)


NO_CREDENTIALS = Credentials()


def read_token(path: Path) -> str:
    """The first line of a file.

    Raises:
        ConfigError: it cannot be read, or holds no token of printable ASCII without blanks.
    """
    try:
        token = path.read_text(encoding="ascii").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no token can be read ({reason(error)})") from error
    if not token or not token.isprintable() or " " in token:
        raise ConfigError(f"{path}: the first line is no token; expected printable characters without blanks")
    return token


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine alone, as far as it says so itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
