"""PEM files into a TLS context, by either side; what is wrong with them in one line."""

from __future__ import annotations

import ssl
from pathlib import Path

from .errors import ConfigError, reason

__all__ = ["load_authorities", "load_identity"]


def load_authorities(context: ssl.SSLContext, path: Path) -> None:
    """Trust the certificates of a file.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{path}: no PEM certificates ({reason(error)})") from error


def load_identity(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Show a certificate, whose key is in a file of its own or in the same.

    Raises:
        ConfigError: a file cannot be read, the key is encrypted, or they do not belong together.
    """
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{certificate}: no PEM certificate with its key ({reason(error)})") from error


def _no_password() -> str:
    """OpenSSL would ask for one at the terminal, where a service has nobody."""
    raise ValueError("the key is encrypted; decrypt it, or keep it where only its owner reads")
